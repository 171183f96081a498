import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.orthogonal.hra import HRA


def drawn(method, W, moved=0.0):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(0), moved=moved)


def turned(method, u):
    """H: what becomes of I."""
    return weight_of(method, np.eye(len(u)), dict(u=u))


@pytest.mark.parametrize(("r", "gs"), [(r, gs) for r in (1, 2, 5, 8, 11) for gs in (False, True) if r <= 8 or not gs])
def test_h_is_orthogonal_of_determinant_plus_or_minus_one_and_leaves_the_rest_alone(r, gs):
    n, method = 8, HRA(r=r, gram_schmidt=gs)
    u = np.random.default_rng(0).standard_normal((n, r))
    H = turned(method, u)
    np.testing.assert_allclose(H @ H.T, np.eye(n), atol=1e-13 * 10**gs)
    assert np.isclose(np.linalg.det(H), (-1.0) ** r)
    assert np.linalg.matrix_rank(H - np.eye(n), tol=1e-10) == min(n, r) - (not gs and r > n and (n - r) % 2)
    if gs:
        np.testing.assert_allclose(H, H.T, atol=1e-12)


def test_the_order_of_reflections_matters():
    u = np.random.default_rng(0).standard_normal((6, 3))
    want = np.eye(6)
    for k in range(3):
        v = u[:, k] / np.linalg.norm(u[:, k])
        want = want @ (np.eye(6) - 2 * np.outer(v, v))
    np.testing.assert_allclose(turned(HRA(r=3), u), want, atol=1e-14)
    assert abs(want - want.T).max() > 0.1


def test_only_pairs_of_equal_columns_begin_as_the_base():
    W = np.random.default_rng(1).standard_normal((5, 12))
    u = drawn(HRA(r=6), W)["u"]
    assert (u[:, ::2] == u[:, 1::2]).all() and len(np.unique(u[0])) == 3
    assert abs(u).max() <= 3**-0.5 < abs(u).max() * 1.2
    np.testing.assert_allclose(weight_of(HRA(r=6), W, dict(u=u)), W, atol=1e-14)
    for other in (HRA(r=5), HRA(r=6, gram_schmidt=True)):
        assert not other.identity
        u = drawn(other, W)["u"]
        assert len(np.unique(u[0])) == other.r and np.isfinite(weight_of(other, W, dict(u=u))).all()
        assert abs(weight_of(other, W, dict(u=u)) - W).max() > 0.1


def test_more_columns_than_can_be_orthogonal_are_refused():
    """What is left of another is roundings made of length 1."""
    model = tiny.model()
    with pytest.raises(Bad, match="r must be at most 24, as no more columns are orthogonal, found 25"):
        attach(model, HRA(r=25, gram_schmidt=True), targets="attn.q.weight")
    attach(model, HRA(r=25), targets="attn.q.weight")


def test_the_penalty_is_that_of_the_paper():
    u = np.random.default_rng(0).standard_normal((7, 4))
    V = u / np.linalg.norm(u, axis=0)
    want = 0.3 * 2 * np.linalg.norm(np.eye(4) - V.T @ V) ** 2
    np.testing.assert_allclose(HRA(r=4, lam=0.3).penalty({"a": dict(u=u), "b": dict(u=u)}), want, rtol=1e-13)
    assert HRA(r=4).penalty({"a": dict(u=u)}) is None
    assert HRA(r=4, lam=1.0, gram_schmidt=True).penalty({"a": dict(u=u)}) < 1e-24


@pytest.mark.hf
@pytest.mark.parametrize(("shape", "r"), [((9, 14), 4), ((12, 8), 3)])
@pytest.mark.parametrize("gs", [False, True])
def test_output_gradients_and_merged_weight_are_those_of_peft(shape, r, gs):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in (shape, shape[:1], (2, 3, shape[1]), (2, 3, shape[0])))
    theirs = one_part.Peft(peft.HRAConfig(r=r, apply_GS=gs, init_weights=False, target_modules=["lin"]), W, b, x, c)
    method, theta = HRA(r=r, gram_schmidt=gs), dict(u=theirs.params["hra_u"])
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12 * abs(theirs.y).max())
    g = theirs.grads["hra_u"]
    np.testing.assert_allclose(grads["u"], g, rtol=0, atol=1e-12 * abs(g).max())
    np.testing.assert_allclose(weight_of(method, W, theta), theirs.merged(), rtol=0, atol=1e-12 * abs(W).max())
