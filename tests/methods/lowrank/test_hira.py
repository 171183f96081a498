import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.lowrank.hira import HiRA


def drawn(method, W, seed=0, moved=0.0, **site):
    return one_part.arrays(method, one_part.site(W, **site), np.random.default_rng(seed), moved=moved)


@pytest.mark.parametrize(("shape", "r"), [((9, 14), 2), ((12, 8), 4), ((3, 5), 7)])
def test_the_change_is_the_weight_times_a_low_rank_matrix(shape, r):
    W = np.random.default_rng(1).standard_normal(shape)
    a = drawn(HiRA(r=r), W, moved=0.5)
    D = weight_of(HiRA(r=r), W, a) - W
    np.testing.assert_allclose(D / W, a["B"] @ a["A"], rtol=1e-12)
    assert np.linalg.matrix_rank(D / W) == min(*shape, r)


def test_the_change_has_a_higher_rank_than_its_factors():
    W = np.random.default_rng(1).standard_normal((12, 20))
    a = drawn(HiRA(r=1), W, moved=0.5)
    assert np.linalg.matrix_rank(weight_of(HiRA(r=1), W, a) - W) == 12


def test_what_is_nought_stays_so():
    W = np.random.default_rng(1).standard_normal((6, 8)) * (np.arange(8) % 3 > 0)
    assert not weight_of(HiRA(r=2), W, drawn(HiRA(r=2), W, moved=0.5))[:, ::3].any()


def test_starts():
    W = np.ones((40, 2500))
    plain, normal = drawn(HiRA(r=20), W)["A"], drawn(HiRA(r=20, start="gaussian"), W)["A"]
    assert 0.99 < abs(plain).max() * 50 <= 1 and abs(normal.std() * 20 - 1) < 5 / np.sqrt(2 * normal.size)
    table = drawn(HiRA(r=20), W, kind="embedding", name="embed.tokens.weight")
    assert abs(table["A"].std() - 1) < 5 / np.sqrt(2 * table["A"].size) and not table["B"].any()


def test_bad_settings_are_named():
    with pytest.raises(Bad, match="r must be at least 1"):
        HiRA(r=0)
    with pytest.raises(Bad, match="start must be 'uniform' or 'gaussian'"):
        HiRA(start="zero")


@pytest.mark.hf
@pytest.mark.parametrize(("shape", "r"), [((9, 14), 2), ((12, 8), 9)])
def test_output_gradients_and_merged_weight_are_those_of_peft(shape, r):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in (shape, shape[:1], (2, 3, shape[1]), (2, 3, shape[0])))
    theirs = one_part.Peft(peft.HiraConfig(r=r, target_modules=["lin"]), W, b, x, c)
    theta = {k: theirs.params[f"hira_{k}"] for k in "AB"}
    y, grads = one_part.forward_and_grads(HiRA(r=r), theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12 * abs(theirs.y).max())
    for k in "AB":
        g = theirs.grads[f"hira_{k}"]
        np.testing.assert_allclose(grads[k], g, rtol=0, atol=1e-12 * abs(g).max())
    np.testing.assert_allclose(weight_of(HiRA(r=r), W, theta), theirs.merged(), rtol=0, atol=1e-12 * abs(W).max())
