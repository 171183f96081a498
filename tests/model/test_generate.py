"""Generation: what transformers generates, the same with and without a cache, and sampling that follows its distribution."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.model.batch import batch
from minipeft.model.generate import generate, pick
from minipeft.settings import small

ROOT = Path(__file__).parents[1] / "data" / "bases"
load_methods()


def recorded():
    for folder in sorted(ROOT.iterdir()):
        for key in sorted(read_tensors(folder / "expected.safetensors")):
            if key.endswith("/generated"):
                yield folder.name, key.split("/")[0]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name, padding", list(recorded()))
def test_greedy_generation_is_that_of_transformers(name, padding, use_cache):
    """Rows that have ended are filled with padding, as there."""
    group = {
        k.split("/")[1]: v
        for k, v in read_tensors(ROOT / name / "expected.safetensors").items()
        if k.startswith(padding)
    }
    asked = batch(input_ids=group["input_ids"], attention_mask=group["attention_mask"])
    want = group["generated"]
    found = generate(Adapted(load(ROOT / name, np.float64)), asked, 8, use_cache=use_cache)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    "method", ["lora", "prompt_tuning", "prefix_tuning", "p_tuning", "llama_adapter", "loreft", "houlsby", "invertible"]
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_cache_changes_nothing_with_adapters(method, family):
    model = tiny.model(family)
    adapted = attach(model, small(METHODS[method], model.arch))
    rng = np.random.default_rng(0)
    adapted = adapted.replace({k: v + 0.2 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})
    ids = np.array([[0, 0, 5, 9, 3], [8, 30, 4, 11, 2]])
    asked = batch(input_ids=ids, attention_mask=(ids > 0).astype(int))
    with_cache, without = (generate(adapted, asked, 6, use_cache=c) for c in (True, False))
    np.testing.assert_array_equal(with_cache, without)
    alone = generate(adapted, batch(input_ids=ids[:1, 2:]), 6)
    np.testing.assert_array_equal(with_cache[0, : alone.shape[1]], alone[0])


def test_virtual_tokens_leave_less_room():
    adapted = attach(tiny.model("gpt2"), METHODS["prompt_tuning"](p=30))
    asked = batch(input_ids=np.array([[5, 9, 3, 8]]))
    assert generate(adapted, asked, 3).shape[1] <= 3
    with pytest.raises(Bad, match="40"):
        generate(adapted, asked, 12)


def test_tokens_end_with_the_end_token():
    model = tiny.model("llama")
    import dataclasses

    first = generate(Adapted(model), batch(input_ids=np.array([[5, 9]])), 1)[0, 0]
    model = dataclasses.replace(model, arch=dataclasses.replace(model.arch, eos_ids=(int(first),)))
    found = generate(Adapted(model), batch(input_ids=np.array([[5, 9], [7, 7]])), 6)
    assert found[0, 0] == first and (found[0, 1:] == model.arch.pad_id).all()
    beyond = dataclasses.replace(model, arch=dataclasses.replace(model.arch, fill_id=model.arch.vocab + 5))
    filled = generate(
        Adapted(beyond), batch(input_ids=np.array([[5, 9], [7, 7]])), 6
    )  # what fills a row is not computed with
    assert (filled[0, 1:] == model.arch.vocab + 5).all() and (filled[1] == found[1]).all()


# --- sampling ---------------------------------------------------------------------------------------------------------

ROWS = st.lists(st.floats(-8, 8), min_size=2, max_size=9, unique=True)


@given(ROWS, st.integers(1, 9), st.floats(0.05, 1.0), st.floats(0.2, 3.0), st.integers(0, 2**31))
def test_what_is_drawn_is_among_the_likely(row, top_k, top_p, temperature, seed):
    logits = np.array([row])
    p = np.exp(logits[0] / temperature - max(row) / temperature)
    order = sorted(range(len(row)), key=lambda i: -row[i])[:top_k]
    q = p[order] / p[order].sum()
    allowed = {order[i] for i in range(len(order)) if q[:i].sum() < top_p + 1e-12}
    assert pick(logits, np.random.default_rng(seed), temperature, top_k, top_p)[0] in allowed


@given(ROWS, st.integers(0, 2**31))
def test_one_candidate_is_greedy(row, seed):
    logits, rng = np.array([row]), np.random.default_rng(seed)
    best = int(np.argmax(row))
    assert (
        pick(logits, rng, 0, 0, 1.0)[0]
        == pick(logits, rng, 1.0, 1, 1.0)[0]
        == pick(logits, rng, 1.0, 0, 1e-9)[0]
        == best
    )


@pytest.mark.parametrize("temperature, top_k, top_p", [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.7)])
def test_frequencies_are_the_probabilities(temperature, top_k, top_p):
    """Within five standard deviations, in 20,000 draws."""
    row, n = np.array([0.5, 2.0, -1.0, 1.0, 0.0]), 20_000
    p = np.exp(row / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    if top_p < 1:
        p[order[1 + np.flatnonzero(np.cumsum(p[order]) >= top_p)[0] :]] = 0
    p /= p.sum()
    drawn = pick(np.tile(row, (n, 1)), np.random.default_rng(0), temperature, top_k, top_p)
    found = np.bincount(drawn, minlength=5)
    assert (abs(found - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1e-9).all()


def test_a_seed_fixes_what_is_drawn():
    asked = batch(input_ids=np.array([[5, 9, 3]]))
    one, again, other = (generate(Adapted(tiny.model()), asked, 12, temperature=1.5, seed=s) for s in (1, 1, 2))
    assert one.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("family", "arrays", "options", "line"),
    [
        ("bert", {}, {}, "generate needs a language-model head; this model's head is 'classify'"),
        ("llama", {}, dict(temperature=-1), "generate: temperature must be at least 0, found -1"),
        ("llama", {}, dict(temperature=float("nan")), "generate: temperature must be a number"),
        ("llama", {}, dict(top_p=0), r"top_p must lie in \(0, 1\], found 0"),
        ("llama", {}, dict(new_tokens=-1), "new_tokens must be at least 0, found -1"),
        ("llama", dict(input_ids=None, inputs_embeds=np.ones((1, 3, 24))), {}, "expected input_ids, found inputs_embeds alone"),
        ("llama", dict(attention_mask=np.array([1, 1, 0])), {}, r"attention_mask: expected shape \(1, 3\)"),
        ("llama", dict(attention_mask=np.array([[1, 1, 0]])), {}, "expected padding on the left, found rows that end in padding"),
    ],
)  # fmt: skip
def test_bad_requests(family, arrays, options, line):
    with pytest.raises(Bad, match=line):
        given = batch(**{"input_ids": np.array([[5, 9, 3]])} | arrays)
        generate(Adapted(tiny.model(family)), given, **{"new_tokens": 2} | options)
