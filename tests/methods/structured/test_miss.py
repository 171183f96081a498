import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.miss import MiSS
from minipeft.methods.structured.miss_bat import MiSSBAT


def drawn(method, W, moved=0.0):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(0), moved=moved)


@pytest.mark.parametrize("mini", [0, 1, 4])
@pytest.mark.parametrize("r", [1, 3, 5, 14])
def test_every_rth_input_shares_its_column_and_the_rank_is_at_most_r(r, mini):
    W = np.zeros((8, 14))
    D = weight_of(MiSS(r=r, mini=mini), W, drawn(MiSS(r=r, mini=mini), W, moved=1.0))
    assert all((D[:, i] == D[:, i % r]).all() for i in range(14))
    assert np.linalg.matrix_rank(D) == min(r, 8, mini or 8)
    if mini:
        assert all((D[o] == D[o % mini]).all() for o in range(8))
    else:
        assert np.unique(D[:, : min(r, 14)]).size == 8 * r


@pytest.mark.parametrize("r", [1, 2, 4])
def test_bat_is_an_affine_map_of_blocks_that_a_row_shares(r):
    W = np.random.default_rng(1).standard_normal((8, 12))
    a = drawn(MiSSBAT(r=r), W, moved=0.5)
    got = weight_of(MiSSBAT(r=r), W, a)
    for o in range(0, 8, r):
        for i in range(0, 12, r):
            block, B = W[o : o + r, i : i + r], a["B"][o // r]
            np.testing.assert_allclose(got[o : o + r, i : i + r], block @ (np.eye(r) + B) + B, atol=1e-14)


@pytest.mark.parametrize(
    ("method", "shape", "line"),
    [
        (MiSS(r=15), (8, 14), "r must be at most the width 14, found 15"),
        (MiSS(r=2, mini=3), (8, 14), "mini must divide the width 8, found 3"),
        (MiSSBAT(r=4), (8, 14), "r must divide 8 and 14, both widths, found 4"),
    ],
)
def test_what_does_not_fit_is_named(method, shape, line):
    with pytest.raises(Bad, match=line):
        drawn(method, np.zeros(shape))


@pytest.mark.hf
@pytest.mark.parametrize(("shape", "ours", "theirs"), [
    ((9, 14), MiSS(r=4), dict(r=4)),
    ((8, 12), MiSS(r=5), dict(r=5)),
    ((8, 12), MiSS(r=4, mini=2), dict(r=4, init_weights="mini", mini_r=2)),
    ((8, 12), MiSSBAT(r=4), dict(r=4, init_weights="bat")),
    ((6, 9), MiSSBAT(r=3), dict(r=3, init_weights="bat")),
])  # fmt: skip
def test_output_gradients_and_merged_weight_are_those_of_peft(shape, ours, theirs):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in (shape, shape[:1], (2, 3, shape[1]), (2, 3, shape[0])))
    other = one_part.Peft(peft.MissConfig(target_modules=["lin"], **theirs), W, b, x, c)
    theta = {next(iter(drawn(ours, W))): other.params["miss_block"]}
    y, grads = one_part.forward_and_grads(ours, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, other.y, rtol=0, atol=1e-12 * abs(other.y).max())
    for g in grads.values():
        want = other.grads["miss_block"]
        np.testing.assert_allclose(g, want, rtol=0, atol=1e-12 * abs(want).max())
    np.testing.assert_allclose(weight_of(ours, W, theta), other.merged(), rtol=0, atol=1e-12 * abs(W).max())
