"""Generation: positions, mask, labels and the cache. Token by token with the cache is the same as the whole sequence from scratch."""

import dataclasses
from operator import itemgetter

import numpy as np
import pytest
from sampled import one_each

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.prompt.cartridge import Cartridge
from minipeft.methods.prompt.cpt import CPT
from minipeft.methods.prompt.llama_adapter import LLaMAAdapter
from minipeft.methods.prompt.mpt import MPT
from minipeft.methods.prompt.p_tuning import PTuning
from minipeft.methods.prompt.prefix_tuning import PrefixTuning
from minipeft.methods.prompt.prompt_tuning import PromptTuning
from minipeft.model.batch import batch
from minipeft.model.cache import Growing
from minipeft.model.generate import counted, generate

METHODS = {
    "prompt": PromptTuning(p=3),
    "prompt, positions dropped": PromptTuning(p=3, ignores="positions and types"),
    "p-tuning": PTuning(p=3, hidden=5),
    "cpt": CPT(tokens=(7, 3, 9), types=(1, 2, 4)),
    "mpt": MPT(p=3, r=2, n_tasks=2),
    "llama-adapter": LLaMAAdapter(K=3),
    "cartridge prefix": Cartridge(p=3),
    "prefix": PrefixTuning(p=3),
    "prefix, positions from 0": PrefixTuning(p=3, positions="zero"),
    "prefix, projected": PrefixTuning(p=3, hidden=5),
}
DECODERS = [
    (name, family) for name in METHODS for family in ("llama", "gpt2") if "from 0" not in name or family == "llama"
]


def adapted_of(method, family):
    adapted = attach(tiny.model(family), method)
    rng = np.random.default_rng(3)
    return adapted.replace({k: v + 0.5 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def inputs(adapted, padding):
    """Three rows, padded; where it is on the left positions count the real tokens."""
    given = tiny.example(adapted.model, padding=padding).having(labels=None)
    return given.having(position_ids=counted(given.attention_mask)) if padding == "left" else given


def columns(given, end):
    """The first tokens of a batch."""
    cut = {k: v[:, :end] for k, v in given.arrays.items() if k != "task_ids"}
    return given.having(**{k: np.ascontiguousarray(v) for k, v in cut.items()})


def token_by_token(adapted, given, first):
    """Logits of the text: of its first tokens in one pass, then of one token after the other with the cache."""
    run, p = adapted.run(cache=Growing()), 0
    found, past = [], 0
    for end in (first, *range(first + 1, given.input_ids.shape[1] + 1)):
        step = columns(given, end)
        mask = np.concatenate([np.ones((3, p), int), step.attention_mask], axis=1)
        new = slice(end - 1 if past else 0, end)
        more = dict(input_ids=step.input_ids[:, new], attention_mask=mask)
        if step.position_ids is not None:
            more |= dict(position_ids=step.position_ids[:, new] + p)
        out = run.forward(step.having(**more), past)
        p, past = p + out.tokens.virtual, past + out.tokens.t
        found.append(out.logits[:, -(new.stop - new.start) :])
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize(("name", "family"), one_each(DECODERS, itemgetter(0)))
def test_token_by_token_is_the_whole_sequence(name, family, padding):
    adapted = adapted_of(METHODS[name], family)
    given = inputs(adapted, padding)
    real = given.attention_mask.astype(bool)
    for first in (1, 4):
        got = token_by_token(adapted, given, first)
        for end in range(first, real.shape[1] + 1):  # each from scratch
            whole = adapted.logits(columns(given, end))[:, -1]
            seen = real[:, end - 1]
            np.testing.assert_allclose(got[:, end - 1][seen], whole[seen], rtol=0, atol=1e-12 * abs(whole).max())


@pytest.mark.parametrize(
    ("name", "family", "padding"),
    one_each([(*case, padding) for case in DECODERS for padding in ("none", "left")], itemgetter(0)),
)
def test_generated_tokens_are_those_of_whole_passes(name, family, padding):
    """And, where positions count real tokens, those of a row alone without its padding."""
    adapted = adapted_of(METHODS[name], family)
    adapted = dataclasses.replace(
        adapted, model=dataclasses.replace(adapted.model, arch=dataclasses.replace(adapted.model.arch, eos_ids=()))
    )
    given = inputs(adapted, padding).having(position_ids=None)
    new = generate(adapted, given, 6)
    assert new.tolist() == generate(adapted, given, 6, use_cache=False).tolist()
    counts = getattr(METHODS[name], "ignores", "nothing") == "nothing"
    for row in range(3):
        shown = given.attention_mask[row] == 1
        ids, tasks = given.input_ids[row][shown], given.task_ids[row : row + 1]
        if counts or shown.all():
            assert generate(adapted, batch(input_ids=ids[None], task_ids=tasks), 6)[0].tolist() == new[row].tolist()
        for n, token in enumerate(new[row]):
            if counts or shown.all():
                whole = batch(input_ids=np.array([[*ids, *new[row][:n]]]), task_ids=tasks)
                assert adapted.logits(whole)[0, -1].argmax() == token


def test_generation_wants_padding_on_the_left():
    adapted = adapted_of(PromptTuning(p=3), "llama")
    with pytest.raises(Bad, match="expected padding on the left"):
        generate(adapted, inputs(adapted, "right"), 3)


@pytest.mark.parametrize(
    ("name", "padding"),
    one_each(
        [(n, p) for n in METHODS if "from 0" not in n and n != "cpt" for p in ("none", "left", "right")], itemgetter(0)
    ),
)
def test_an_encoder_decoder(name, padding):
    """The encoder's prompt is there once, the decoder's before its first token; every step is a pass over all so far."""
    adapted = adapted_of(METHODS[name], "t5")
    adapted = dataclasses.replace(
        adapted, model=dataclasses.replace(adapted.model, arch=dataclasses.replace(adapted.model.arch, eos_ids=()))
    )
    given = inputs(adapted, padding).having(position_ids=None)
    new = generate(adapted, given, 5)
    assert new.tolist() == generate(adapted, given, 5, use_cache=False).tolist()
    start = np.full((3, 1), adapted.model.arch.start_id)
    for n in range(5):
        so_far = np.concatenate([start, new[:, :n]], axis=1)
        assert (
            adapted.logits(given.having(decoder_input_ids=so_far))[:, -1].argmax(axis=-1).tolist() == new[:, n].tolist()
        )


@pytest.mark.parametrize("name", ["prompt", "prompt, positions dropped", "p-tuning", "mpt"])
def test_labels_of_a_prompt_do_not_count(name):
    """The loss is that of the text alone, each token predicted from what stands before it; the first one from the prompt."""
    adapted = adapted_of(METHODS[name], "llama")
    given = tiny.example(adapted.model, padding="right")
    out = adapted.forward(given)
    assert out.logits.shape[1] == given.input_ids.shape[1] + 3
    total, n = 0.0, 0
    for row in range(3):
        for t, label in enumerate(given.labels[row]):
            if label != -100:
                x = out.logits[row, 3 + t - 1]
                total, n = total + np.log(np.exp(x - x.max()).sum()) + x.max() - x[label], n + 1
    np.testing.assert_allclose(adapted.loss(None, given), total / n, rtol=1e-12)
