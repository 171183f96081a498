import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import change_of, weight_of
from minipeft.methods.orthogonal.road import RoAd


def drawn(method, W, moved=0.0):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(0), moved=moved)


@pytest.mark.parametrize("variant", ["1", "2", "4"])
@pytest.mark.parametrize(("out", "group"), [(12, 2), (12, 4), (12, 12), (8, 4)])
def test_outputs_mix_in_pairs_half_a_group_apart(variant, out, group):
    method = RoAd(group=group, variant=variant)
    a = drawn(method, np.zeros((out, 3)), moved=0.5)
    assert {v.size for v in a.values()} == {out * int(variant) // 2}
    R = weight_of(method, np.eye(out), a)
    for i in range(out):
        partner = i + group // 2 if i % group < group // 2 else i - group // 2
        assert set(np.flatnonzero(R[i])) == {i, partner}


@pytest.mark.parametrize("group", [2, 6])
def test_one_angle_a_pair_and_alpha_of_one_turn_without_stretching(group):
    method = RoAd(group=group)
    theta = np.random.default_rng(0).standard_normal(6)
    R = weight_of(method, np.eye(12), dict(theta=theta, alpha=np.ones(6)))
    np.testing.assert_allclose(R @ R.T, np.eye(12), atol=1e-15)
    assert abs(R - R.T).max() > 0.1 and np.isclose(np.linalg.det(R), 1)
    half = weight_of(method, np.eye(12), dict(theta=theta, alpha=np.full(6, 2.0)))
    np.testing.assert_allclose(half, 2 * R)


def test_the_bias_is_turned_with_the_weight():
    rng = np.random.default_rng(0)
    W, b, x = rng.standard_normal((8, 5)), rng.standard_normal(8), rng.standard_normal((3, 5))
    method = RoAd(group=4, variant="4")
    a = drawn(method, W, moved=0.5)
    R = weight_of(method, np.eye(8), a)
    np.testing.assert_allclose(one_part.output(method, a, x, W, b), (x @ W.T + b) @ R.T, atol=1e-13)
    np.testing.assert_allclose(change_of(method, a).bias(b), R @ b, atol=1e-14)
    assert change_of(method, a).bias(None) is None


def test_what_does_not_fit_is_named():
    with pytest.raises(Bad, match="group must be even and above 0, found 3"):
        RoAd(group=3)
    with pytest.raises(Bad, match="group must divide the width 9, found 4"):
        drawn(RoAd(group=4), np.zeros((9, 4)))


@pytest.mark.hf
@pytest.mark.parametrize("variant", ["1", "2", "4"])
@pytest.mark.parametrize(("shape", "group"), [((12, 14), 4), ((8, 12), 8)])
def test_output_gradients_and_merged_weight_are_those_of_peft(variant, shape, group):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in (shape, shape[:1], (2, 3, shape[1]), (2, 3, shape[0])))
    config = peft.RoadConfig(variant=f"road_{variant}", group_size=group, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c)
    method, theta = RoAd(variant=variant, group=group), {k: theirs.params[f"road_{k}"] for k in ("theta", "alpha")}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12 * abs(theirs.y).max())
    for k in theta:
        g = theirs.grads[f"road_{k}"]
        np.testing.assert_allclose(grads[k], g, rtol=0, atol=1e-12 * abs(g).max())
    np.testing.assert_allclose(weight_of(method, W, theta), theirs.merged(), rtol=0, atol=1e-12 * abs(W).max())
