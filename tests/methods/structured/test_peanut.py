import numpy as np
import one_part
import pytest

from minipeft.checkpoints.config import ACTS
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.peanut import PEANuT


def keys(depth):
    inner = {
        f"{k}{i}": f"peanut_{n}.{i}.weight" for i in range(depth) for k, n in (("E", "encoders"), ("D", "decoders"))
    }
    return inner | dict(A="peanut_A.weight", B="peanut_B.weight")


def drawn(method, W, moved=0.5):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(1), moved=moved)


def test_without_depth_and_function_it_is_a_low_rank_times_the_weight():
    W = np.random.default_rng(0).standard_normal((6, 8))
    method = PEANuT(r=2, f="linear", scale=0.7)
    a = drawn(method, W)
    np.testing.assert_allclose(weight_of(method, W, a), (np.eye(6) + 0.7 * a["B"] @ a["A"]) @ W, rtol=0, atol=1e-13)
    deeper = PEANuT(r=2, f="linear", depth=1)
    a = drawn(deeper, W)
    expected = a["B"] @ (a["D0"] @ a["E0"] + np.eye(2)) @ a["A"] @ W
    np.testing.assert_allclose(weight_of(deeper, W, a) - W, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_each_column_is_changed_by_itself_and_the_change_has_rank_r(depth):
    W = np.random.default_rng(0).standard_normal((6, 8))
    method = PEANuT(r=2, depth=depth)
    a = drawn(method, W)
    W1 = weight_of(method, W, a)
    other = W.copy()
    other[:, 3] += 1.0
    same = (weight_of(method, other, a) == W1).all(axis=0)
    assert same.tolist() == [True] * 3 + [False] + [True] * 4
    assert np.linalg.matrix_rank(W1 - W) <= 2
    assert len(a) == 2 + 2 * depth


def test_starts():
    a = drawn(PEANuT(r=5, depth=2), np.ones((400, 3)), moved=0.0)
    assert not a.pop("B").any()
    assert 0.9 < abs(a.pop("A")).max() * 20 <= 1
    assert all(v.shape == (5, 5) and 0.5 < abs(v).max() * 5**0.5 <= 1 for v in a.values())


def test_bad_fields_are_named():
    with pytest.raises(Bad, match=r"f must be one of gelu, .*found 'prelu'"):
        PEANuT(f="prelu")
    with pytest.raises(Bad, match="depth must be at most 64, found 65"):
        PEANuT(depth=65)


def compared(r, depth, act, scale, shape):
    import peft

    rng = np.random.default_rng(0)
    out, in_ = shape
    W, b, x, c = (rng.standard_normal(s) for s in (shape, (out,), (2, 3, in_), (2, 3, out)))
    config = peft.PeanutConfig(r=r, depth=depth, act_fn=act, scaling=scale, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c)
    method = PEANuT(r=r, depth=depth, f=ACTS[act], scale=scale)
    names = keys(depth)
    assert set(names.values()) == set(theirs.params)
    theta = {k: theirs.params[name] for k, name in names.items()}
    assert {k: v.shape for k, v in drawn(method, W).items()} == {k: v.shape for k, v in theta.items()}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    for k, name in names.items():
        assert abs(theirs.grads[name]).max() > 0
        np.testing.assert_allclose(grads[k], theirs.grads[name], rtol=0, atol=1e-12 * abs(theirs.grads[name]).max())
    np.testing.assert_allclose(weight_of(method, W, theta), theirs.merged(), rtol=0, atol=1e-13 * abs(W).max())


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(6, 8), (13, 5)])
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("r", [5, 20])
def test_output_gradients_and_merged_weight_are_those_of_peft(shape, depth, r):
    compared(r, depth, "relu", 0.7, shape)


@pytest.mark.hf
@pytest.mark.parametrize("act", ACTS)
def test_every_activation_function_is_peft_s(act):
    compared(3, 1, act, 1.0, (6, 8))
