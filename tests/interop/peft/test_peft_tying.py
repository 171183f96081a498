"""ensure_weight_tying: a head that is tied to the token table has the table's change, adapted or trained whole."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.arithmetic import Combination, combine
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors, write_json, write_tensors
from minipeft.checkpoints.native import load_adapter, save_adapter
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.merging import merge
from minipeft.method import METHODS, load_methods
from minipeft.model.batch import batch

load_methods()
ROOT = Path(__file__).parents[2] / "data" / "peft"
GIVEN = batch(input_ids=np.array([[5, 9, 3, 17], [8, 30, 4, 11]]))
TIED = "llama-tied/lora-tied"


@pytest.fixture(scope="module")
def bases():
    return {
        name: load(ROOT / name / "base", np.float64) for name in ("llama", "llama-tied", "gpt2", "t5", "found-bertmlm")
    }


def moved(adapted):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.2 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def changed(tmp_path, case, tensors=lambda t: t, **fields):
    folder = tmp_path / "a"
    shutil.copytree(ROOT / case / "adapter", folder)
    file = folder / "adapter_config.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | fields)
    weights = folder / "adapter_model.safetensors"
    write_tensors(weights, tensors(read_tensors(weights)))
    return folder


def tied(model, name="default", **settings):
    return moved(
        attach(
            model, METHODS["lora"](r=3, **settings), name=name, targets="embed.tokens.weight attn.q.weight", tie=True
        )
    )


@pytest.mark.parametrize("base", ["llama-tied", "gpt2"])
def test_the_head_has_the_change_and_merges_once(base, bases):
    targets = "embed.tokens.weight"
    one = moved(attach(bases[base], METHODS["lora"](r=3), targets=targets, tie=True))
    merged = merge(one)
    a = one.adapters[0].arrays
    W = bases[base].params[targets]
    np.testing.assert_allclose(
        merged.params[targets], W + 8 / 3 * a[f"{targets}:B"] @ a[f"{targets}:A"], rtol=0, atol=1e-13
    )
    assert "head.weight" not in merged.params
    want = one.logits(GIVEN)
    np.testing.assert_allclose(Adapted(merged).logits(GIVEN), want, rtol=0, atol=1e-12 * abs(want).max())
    loose = attach(bases[base], METHODS["lora"](r=3), targets=targets)
    assert abs(loose.replace(one.theta).logits(GIVEN) - want).max() > 1e-3


@pytest.mark.parametrize("base", ["llama-tied", "gpt2"])
def test_written_and_read(base, bases, tmp_path):
    one = (
        tied(bases[base])
        if base != "gpt2"
        else moved(attach(bases[base], METHODS["lora"](r=3), targets="wte", tie=True))
    )
    for n, adapted in enumerate((one, moved(attach(bases[base], METHODS["lora"](r=2), train_whole=["embed.tokens"])))):
        want = adapted.logits(GIVEN)
        save_peft(adapted, tmp_path / f"{n}")
        again = load_peft(bases[base], tmp_path / f"{n}")
        np.testing.assert_array_equal(again.logits(GIVEN), want)
        config = json.loads((tmp_path / f"{n}/adapter_config.json").read_text(encoding="utf-8"))
        assert config["ensure_weight_tying"] is True
    save_adapter(one, tmp_path / "own")
    np.testing.assert_array_equal(load_adapter(bases[base], tmp_path / "own").logits(GIVEN), one.logits(GIVEN))


def test_combined(bases):
    two = tied(tied(bases["llama-tied"], "a"), "b")
    want = two.using(a=0.5, b=2.0).logits(GIVEN)
    got = combine(two, {"a": 0.5, "b": 2.0}, Combination("cat")).logits(GIVEN)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * abs(want).max())
    apart = attach(tied(bases["llama-tied"], "a"), METHODS["lora"](r=3), name="b", targets="embed_tokens")
    with pytest.raises(
        Bad, match=r"the head that is tied to embed\.tokens\.weight follows the change of 'a' and not that of 'b'"
    ):
        combine(apart, {"a": 1.0, "b": 1.0}, Combination("cat"))


def test_the_sum_of_changes_that_a_tied_head_follows(bases):
    """A method that a tied head follows by itself is LoRA's once it is combined, and the head follows still."""
    one = moved(attach(bases["llama-tied"], METHODS["loha"](r=2), targets="embed_tokens"))
    want = one.logits(GIVEN)
    got = combine(one, {"default": 1.0}, Combination("svd", rank=1.0)).logits(GIVEN)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * abs(want).max())


HEAD = "base_model.model.lm_head."


def other_head(tensors):
    key = next(k for k in tensors if k in (f"{HEAD}lora_A.weight", f"{HEAD}weight"))
    return tensors | {key: tensors[key] + np.float32(1)}


@pytest.mark.parametrize(
    ("case", "tensors", "fields", "says"),
    [
        (TIED, other_head, {}, "ensure_weight_tying: A of the tied head is not that of the token table: PEFT lets them part in half precision"),
        ("llama-tied/lora-tied-whole", other_head, {}, "ensure_weight_tying: the tied head differs from the token table"),
        (TIED, None, dict(alpha_pattern={"lm_head": 3}), "model.embed_tokens and lm_head differ in rank_pattern or alpha_pattern"),
        (TIED, None, dict(ensure_weight_tying="yes"), "ensure_weight_tying: expected true or false, found 'yes'"),
        (TIED, lambda t: t | {f"{HEAD}lora_magnitude_vector": np.ones(43, np.float32)}, {}, "unexpected tensor .*lm_head.lora_magnitude_vector"),
    ],
)  # fmt: skip
def test_refused(case, tensors, fields, says, bases, tmp_path):
    folder = changed(tmp_path, case, tensors or (lambda t: t), **fields)
    with pytest.raises(Bad, match=f"^[^\n]*{says}[^\n]*$"):
        load_peft(bases["llama-tied"], folder)


def test_where_there_is_nothing_to_tie(bases):
    for base, targets in (("llama", "embed_tokens lm_head"), ("llama-tied", "lm_head"), ("llama-tied", "q_proj")):
        with pytest.raises(Bad, match=r"^tie: expected a change of the token table, and a head that is tied to it$"):
            attach(bases[base], METHODS["lora"](r=2), targets=targets, tie=True)


def test_a_base_that_is_not_tied(bases, tmp_path):
    """PEFT warns and ties nothing: each has its own."""
    folder = changed(tmp_path, "llama/lora-embedding", ensure_weight_tying=True)
    got = load_peft(bases["llama"], folder)
    assert not got.adapters[0].tied
    want = load_peft(bases["llama"], ROOT / "llama/lora-embedding/adapter").logits(GIVEN)
    np.testing.assert_array_equal(got.logits(GIVEN), want)


@pytest.mark.parametrize(
    ("method", "base", "how", "says"),
    [
        ("dora", "llama-tied", dict(targets="embed_tokens", tie=True), "dora at head.weight: PEFT has no m_emb there"),
        ("lora", "found-bertmlm", dict(targets="word_embeddings", tie=True), "LORA: PEFT ties no head cls.predictions.decoder"),
        ("lora", "llama-tied", dict(targets="lm_head", train_whole=["embed_tokens"]),
         r"lora at head\.weight: PEFT adapts no head that is tied to a table trained whole"),
        ("loha", "llama-tied", dict(train_whole=["embed_tokens"]), "LOHA: PEFT ties no head lm_head to a token table"),
        ("lora", "t5", dict(targets="shared", tie=True), "in transformers the stacks look tokens up in tables of their own"),
    ],
)  # fmt: skip
def test_what_peft_cannot_hold(method, base, how, says, bases, tmp_path):
    with pytest.raises(Bad, match=says):
        save_peft(attach(bases[base], METHODS[method](r=2), **how), tmp_path / "out")
    assert not (tmp_path / "out").exists()
