"""What every family promises: padding and company change nothing, later tokens do not reach back, bad batches are refused."""

import dataclasses

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import with_head
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.lowrank.lora import LoRA
from minipeft.model.batch import batch

CAUSAL = ("llama", "gpt2")


def logits(model, **arrays):
    return Adapted(model).logits(batch(**arrays))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("pads", [1, 4])
def test_padding_on_the_right_changes_nothing(family, pads):
    model = tiny.model(family)
    ids, mask = np.array([[5, 9, 3, 17]]), np.ones((1, 4), int)
    more = {"decoder_input_ids": np.array([[0, 7, 8]])} if family == "t5" else {}
    padded = logits(
        model, input_ids=np.pad(ids, ((0, 0), (0, pads))), attention_mask=np.pad(mask, ((0, 0), (0, pads))), **more
    )
    alone = logits(model, input_ids=ids, **more)
    padded = padded[:, :4] if family in CAUSAL else padded
    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", CAUSAL)
def test_padding_on_the_left_with_positions_from_the_mask_changes_nothing(family):
    model, ids = tiny.model(family), np.array([[5, 9, 3, 17]])
    padded = logits(
        model, input_ids=np.pad(ids, ((0, 0), (3, 0))), attention_mask=np.array([[0, 0, 0, 1, 1, 1, 1]]),
        position_ids=np.array([[0, 0, 0, 0, 1, 2, 3]]),
    )  # fmt: skip
    np.testing.assert_allclose(padded[:, 3:], logits(model, input_ids=ids), rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "vit"])
def test_rows_do_not_see_each_other(family):
    model = tiny.model(family)
    given = tiny.example(model)
    together = Adapted(model).logits(given)
    for row in range(3):
        one = {k: v[row : row + 1] for k, v in given.arrays.items()}
        np.testing.assert_allclose(together[row : row + 1], logits(model, **one), rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", CAUSAL)
def test_later_tokens_do_not_reach_back(family):
    model = tiny.model(family)
    one, other = np.array([[5, 9, 3, 17, 20]]), np.array([[5, 9, 3, 30, 41]])
    a, b = logits(model, input_ids=one), logits(model, input_ids=other)
    np.testing.assert_array_equal(a[:, :3], b[:, :3])
    assert abs(a[:, 3:] - b[:, 3:]).min(axis=-1).max() > 0


def test_a_window_hides_what_is_too_far_back():
    model = tiny.model("llama")
    model = dataclasses.replace(model, arch=dataclasses.replace(model.arch, window=2, layers=1))
    one, other = np.array([[5, 9, 3, 17, 20]]), np.array([[6, 9, 3, 17, 20]])
    a, b = logits(model, input_ids=one), logits(model, input_ids=other)
    np.testing.assert_array_equal(a[:, 2:], b[:, 2:])
    assert abs(a[:, :2] - b[:, :2]).max(axis=-1).min() > 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "vit"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_dtype_stays(family, dtype):
    model = tiny.model(family, dtype)
    out = Adapted(model).forward(tiny.example(model))
    assert {out.logits.dtype, out.hidden.dtype, out.loss.dtype} == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_of_another_type_are_the_model_s(dtype):
    """Pixels and embeddings of a file may be narrower, or wider, than the model: it computes in its own."""
    other = {np.float32: np.float64, np.float64: np.float32}[dtype]
    rng = np.random.default_rng(0)
    for family, name, shape in (("vit", "pixel_values", (2, 3, 12, 12)), ("llama", "inputs_embeds", (2, 3, 24))):
        x = rng.standard_normal(shape).astype(np.float32)
        adapted = attach(tiny.model(family, dtype), LoRA(r=2), targets="embed.patch attn.q", seed=1)
        adapted = adapted.replace({k: v + dtype(0.1) for k, v in adapted.theta.items()})
        a, b = (adapted.logits(batch(**{name: x.astype(t)})) for t in (dtype, other))
        assert b.dtype == dtype and np.array_equal(a, b)


IDS = np.array([[5, 9, 3]])


@pytest.mark.parametrize(
    ("family", "arrays", "line"),
    [
        ("llama", {}, "expected input_ids, inputs_embeds or pixel_values, found none"),
        ("llama", dict(input_ids=np.zeros((0, 3), int)), r"at least one row and one token, found shape \(0, 3\)"),
        ("llama", dict(input_ids=np.zeros((2, 0), int)), r"at least one row and one token, found shape \(2, 0\)"),
        ("llama", dict(input_ids=np.array([[5, 50]])), "input_ids: expected token ids 0 … 49, found 50"),
        ("llama", dict(input_ids=np.array([[5, -1]])), "input_ids: expected token ids 0 … 49, found -1"),
        ("llama", dict(input_ids=IDS, attention_mask=np.ones((1, 4), int)), r"attention_mask: expected shape \(1, 3\).*found \(1, 4\)"),
        ("llama", dict(input_ids=IDS, position_ids=np.ones((2, 3), int)), r"position_ids: expected shape \(1, 3\)"),
        ("llama", dict(input_ids=IDS, labels=np.ones((1, 2), int)), r"labels: expected shape \(1, 3\)"),
        ("llama", dict(input_ids=IDS, task_ids=np.array([0, 1])), r"task_ids: expected shape \(1,\), found \(2,\)"),
        ("gpt2", dict(input_ids=np.ones((1, 41), int)), "40"),
        ("gpt2", dict(input_ids=IDS, position_ids=np.array([[38, 39, 40]])), "40"),
        ("bert", dict(input_ids=np.ones((1, 41), int)), "40"),
        ("bert", dict(input_ids=IDS, labels=np.array([5])), "5"),
        ("llama", dict(input_ids=IDS, position_ids=np.array([[0, 1, 0]])), "found a jump: packed texts are not kept apart"),
        ("llama", dict(input_ids=IDS.astype(float)), "input_ids: expected integers, found float64"),
        ("llama", dict(input_ids=IDS[0]), r"input_ids: expected shape \(rows, tokens\), found \(3,\)"),
        ("llama", dict(inputs_embeds=np.ones((1, 3, 23))), r"inputs_embeds: expected shape \(1, 3, 24\), found \(1, 3, 23\)"),
        ("llama", dict(inputs_embeds=np.full((1, 3, 24), np.nan)), "inputs_embeds: expected finite numbers, found 72 of 72"),
        ("llama", dict(input_ids=IDS, inputs_embeds=np.ones((1, 3, 24))), "expected input_ids or inputs_embeds, found both"),
        ("llama", dict(input_ids=IDS, attention_mask=np.array([[1, 2, 0]])), "attention_mask: expected 0 and 1 alone, found 2"),
        ("llama", dict(input_ids=IDS, token_type_ids=IDS * 0), "token_type_ids: this llama model does not read it"),
        ("llama", dict(input_ids=IDS, pixel_values=np.ones((1, 3, 8, 8))), "pixel_values: this llama model does not read it"),
        ("llama", dict(input_ids=[[1, 2], [3]]), "input_ids: expected rows of one length"),
        ("llama", dict(input_idz=IDS), r"'input_idz' is unknown \(did you mean input_ids"),
        ("llama", dict(input_ids=IDS, labels=np.array([[50, 2, 3]])), "labels must lie in 0 … 49 or be -100, found 50"),
        ("llama", dict(input_ids=IDS, labels=np.array([[-1, 2, 3]])), "labels must lie in 0 … 49 or be -100, found -1"),
        ("llama", dict(input_ids=IDS, labels=IDS * 1.0), "labels: expected integers, found float64"),
        ("bert", dict(input_ids=IDS, token_type_ids=IDS * 0 - 1), "token_type_ids: expected 0 … 1, found -1"),
        ("bert", dict(input_ids=IDS, position_ids=IDS - 4), "position_ids: expected 0 … 39, found -1"),
        ("gpt2", dict(input_ids=IDS, attention_mask=IDS * 0 + 1, position_ids=IDS - 4), "position_ids: expected 0 … 39, found -1"),
        ("t5", dict(input_ids=IDS, decoder_input_ids=IDS[:0]), r"decoder_input_ids: expected at least one row"),
        ("t5", dict(input_ids=IDS, labels=np.ones((2, 3), int)), r"labels: expected shape \(1, 3\), found \(2, 3\)|labels: expected shape"),
        ("vit", dict(pixel_values=np.ones((1, 3, 12, 12), np.uint8)), "pixel_values: expected floating-point numbers, found uint8"),
        ("vit", dict(input_ids=IDS), "input_ids: this vit model does not read it; it reads pixel_values"),
        ("t5", dict(input_ids=IDS), "needs decoder_input_ids or labels, found neither"),
        ("vit", dict(pixel_values=np.zeros((1, 3, 10, 12))), r"12"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_one_line(family, arrays, line):
    with pytest.raises(Bad, match=line) as told:
        logits(tiny.model(family), **arrays)
    assert "\n" not in str(told.value)


def test_a_decoders_classifier_reads_the_last_token_that_is_no_padding_by_its_id():
    """As in transformers: with or without a mask."""
    model = with_head(tiny.model("llama"), "classify", 5)
    rng = np.random.default_rng(0)
    score = rng.standard_normal((5, 24))
    model = dataclasses.replace(model, params={**model.params, "score.weight": score})
    ids = np.array([[5, 9, 3, 0, 0], [7, 0, 8, 4, 0], [0, 0, 0, 0, 0]])  # 0 is padding, also within a row
    out = Adapted(model).forward(batch(input_ids=ids))
    np.testing.assert_allclose(out.logits, out.hidden[np.arange(3), [2, 3, 0]] @ score.T, rtol=0, atol=1e-13)
    soft = attach(model, "prompt_tuning").forward(batch(input_ids=ids))
    np.testing.assert_allclose(soft.logits, soft.hidden[np.arange(3), [10, 11, 8]] @ score.T, rtol=0, atol=1e-13)


def test_a_loss_needs_labels():
    with pytest.raises(Bad, match="a loss needs labels"):
        Adapted(tiny.model()).loss(None, batch(input_ids=IDS))
