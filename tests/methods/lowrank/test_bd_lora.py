import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.lowrank.bd_lora import BDLoRA

RNG = np.random.default_rng(0)


def drawn(method, out, in_, moved=0.0):
    return one_part.arrays(method, one_part.site(np.zeros((out, in_))), np.random.default_rng(1), moved=moved)


@pytest.mark.parametrize("N", [1, 2, 3])
def test_each_block_of_outputs_sees_its_own_directions(N):
    """Side B: a direction of block i moves the outputs of block i alone."""
    method = BDLoRA(r=6, blocks=N)
    a = drawn(method, 12, 7, moved=0.5)
    assert {k: v.shape for k, v in a.items()} == {"A": (6, 7), "B": (12, 6 // N)}
    for i in range(6):
        one = {**a, "A": a["A"] * (np.arange(6) == i)[:, None]}
        moved = np.flatnonzero(abs(weight_of(method, np.zeros((12, 7)), one)).sum(axis=1))
        assert moved.tolist() == [o for o in range(12) if o // (12 // N) == i // (6 // N)]


@pytest.mark.parametrize("N", [1, 2, 3])
def test_each_block_of_directions_sees_its_own_inputs(N):
    method = BDLoRA(r=6, blocks=N, side="A")
    a = drawn(method, 7, 12, moved=0.5)
    assert {k: v.shape for k, v in a.items()} == {"A": (6, 12 // N), "B": (7, 6)}
    for i in range(6):
        one = {**a, "B": a["B"] * (np.arange(6) == i)}
        seen = np.flatnonzero(abs(weight_of(method, np.zeros((7, 12)), one)).sum(axis=0))
        assert seen.tolist() == [o for o in range(12) if o // (12 // N) == i // (6 // N)]


def test_devices_need_not_speak_between_a_column_and_a_row_parallel_linear():
    """Devices that hold a part of the outputs of up and of the inputs of down each compute with their own blocks."""
    up, down, x = BDLoRA(r=4, alpha=4.0), BDLoRA(r=4, alpha=4.0, side="A"), RNG.standard_normal(5)
    a, b = drawn(up, 6, 5, moved=0.5), drawn(down, 3, 6, moved=0.5)
    whole = weight_of(down, np.zeros((3, 6)), b) @ weight_of(up, np.zeros((6, 5)), a) @ x
    parts = []
    for i in range(2):
        rows = slice(3 * i, 3 * i + 3)
        h = a["B"][rows] @ a["A"][2 * i : 2 * i + 2] @ x
        parts.append(b["B"][:, 2 * i : 2 * i + 2] @ (b["A"][2 * i : 2 * i + 2] @ h))
    np.testing.assert_allclose(sum(parts), whole, rtol=0, atol=1e-14 * abs(whole).max())


def test_what_blocks_do_not_divide_is_refused():
    with pytest.raises(Bad, match="blocks must divide r = 8, found 3"):
        BDLoRA(blocks=3)
    with pytest.raises(Bad, match="blocks must divide the width 10, found 4, at"):
        drawn(BDLoRA(blocks=4), 10, 8)
    with pytest.raises(Bad, match="blocks must divide the width 10, found 4, at"):
        drawn(BDLoRA(blocks=4, side="A"), 8, 10)
    with pytest.raises(Bad, match="lora_bias"):
        BDLoRA(lora_bias=True)
    assert drawn(BDLoRA(r=24, blocks=4), 8, 5)["B"].shape == (8, 6)  # a rank beyond both sides


def test_on_a_table_it_is_refused():
    with pytest.raises(Bad, match="linears"):
        attach(tiny.model(), BDLoRA(), targets="embed.tokens.weight")


@pytest.mark.hf
@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("N", [1, 2, 4])
@pytest.mark.parametrize("shape", [(8, 12), (20, 4)])
def test_output_gradients_merged_weight_and_start_are_those_of_peft(side, N, shape):
    import peft

    out, in_ = shape
    W, b, x, c = (RNG.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    sides = dict(target_modules_bd_a=["lin"]) if side == "A" else dict(target_modules_bd_b=["lin"])
    own = peft.BdLoraConfig(nblocks=N, **sides)
    theirs = one_part.Peft(peft.LoraConfig(r=4, lora_alpha=5, use_bdlora=own, target_modules=["lin"]), W, b, x, c)
    method = BDLoRA(r=4, alpha=5.0, blocks=N, side=side)
    theta = {k: theirs.params[f"lora_{k}.weight"] for k in "AB"}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    for k in "AB":
        expected = theirs.grads[f"lora_{k}.weight"]
        np.testing.assert_allclose(grads[k], expected, rtol=0, atol=1e-13 * abs(expected).max())
    merged = theirs.merged()
    np.testing.assert_allclose(weight_of(method, W, theta), merged, rtol=0, atol=1e-13 * abs(merged).max())


@pytest.mark.hf
@pytest.mark.parametrize("side", ["A", "B"])
def test_the_start_is_as_wide_as_in_peft(side):
    import peft
    import torch

    sides = dict(target_modules_bd_a=["0"]) if side == "A" else dict(target_modules_bd_b=["0"])
    config = peft.LoraConfig(r=40, use_bdlora=peft.BdLoraConfig(nblocks=4, **sides), target_modules=["0"])
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(80, 60)), config)
    A = model.base_model.model[0].lora_A["default"].weight.detach().numpy()
    ours = drawn(BDLoRA(r=40, blocks=4, side=side), 60, 80)
    assert ours["A"].shape == A.shape and not ours["B"].any()
    assert abs(abs(ours["A"]).max() - abs(A).max()) <= 0.03 * abs(A).max()
