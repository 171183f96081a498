import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.lowrank.delora import DeLoRA

KEYS = dict(A="delora_A", B="delora_B", lam="delora_lambda")


def drawn(method, W, moved=0.0):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(0), moved=moved)


@pytest.mark.parametrize("norm", ["columns", "whole"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_change_is_bounded_by_lambda_whatever_the_factors(norm, size):
    """‖W' − W‖ ≤ λ max n, and for one term exactly λ n where all n are one."""
    W = np.random.default_rng(1).standard_normal((9, 14))
    method = DeLoRA(r=3, bound=2.5, norm=norm)
    a = drawn(method, W, moved=1.0)
    a |= dict(A=size * a["A"], B=size * a["B"], lam=np.array([2.5]))
    D = weight_of(method, W, a) - W
    assert 0 < np.linalg.norm(D) <= 2.5 * a["n"].max() * (1 + 1e-12)
    one = DeLoRA(r=1, norm="whole")
    a = drawn(one, W, moved=1.0) | dict(lam=np.array([2.5]))
    np.testing.assert_allclose(np.linalg.norm(weight_of(one, W, a) - W), 2.5 * np.linalg.norm(W), rtol=1e-12)


def test_angles_and_strength_are_apart():
    """Factors that grow change nothing; λ alone says how much."""
    W = np.random.default_rng(1).standard_normal((9, 14))
    method = DeLoRA(r=3)
    a = drawn(method, W, moved=1.0)
    D = weight_of(method, W, a) - W
    other = a | dict(A=a["A"] * np.array([[2.0], [0.1], [7.0]]), B=a["B"] * np.array([0.3, 5.0, 1.1]))
    np.testing.assert_allclose(weight_of(method, W, other) - W, D, atol=1e-12)
    np.testing.assert_allclose(weight_of(method, W, a | dict(lam=-2 * a["lam"])) - W, -2 * D, atol=1e-12)


def test_norms_are_those_of_the_base_and_not_trained():
    W = np.array([[3.0, 0.0], [4.0, 2.0]])
    assert drawn(DeLoRA(r=1), W)["n"].tolist() == [5, 2]
    np.testing.assert_allclose(drawn(DeLoRA(r=1, norm="whole"), W)["n"], [29**0.5] * 2)
    assert drawn(DeLoRA(r=1, bound=4.0), W)["lam"].tolist() == [4] and not drawn(DeLoRA(r=1), W)["B"].any()


def test_bad_settings_are_named():
    with pytest.raises(Bad, match="bound must be positive"):
        DeLoRA(bound=0)


@pytest.mark.hf
@pytest.mark.parametrize(("shape", "r"), [((9, 14), 2), ((12, 8), 9)])
def test_output_gradients_and_merged_weight_are_those_of_peft(shape, r):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in (shape, shape[:1], (2, 3, shape[1]), (2, 3, shape[0])))
    theirs = one_part.Peft(peft.DeloraConfig(r=r, target_modules=["lin"]), W, b, x, c)
    method, theta = DeLoRA(r=r), {k: theirs.params[v] for k, v in KEYS.items()}
    stored = dict(n=drawn(method, W)["n"])
    np.testing.assert_allclose(stored["n"], theirs.state["base_model.model.lin.delora_w_norm.default"], rtol=1e-14)
    y, grads = one_part.forward_and_grads(method, theta, stored, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12 * abs(theirs.y).max())
    for ours, name in KEYS.items():
        np.testing.assert_allclose(grads[ours], theirs.grads[name], rtol=0, atol=1e-12 * abs(theirs.grads[name]).max())
    merged = theirs.merged()
    np.testing.assert_allclose(weight_of(method, W, theta | stored), merged, rtol=0, atol=1e-12 * abs(merged).max())
