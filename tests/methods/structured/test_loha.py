import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.loha import LoHa


def test_the_change_is_the_elementwise_product_and_exceeds_rank_r():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((9, 8))
    method = LoHa(r=2, alpha=3.0)
    a = one_part.arrays(method, one_part.site(W), rng, moved=0.5)
    expected = np.array(
        [[1.5 * (a["X1"][i] @ a["Y1"][:, j]) * (a["X2"][i] @ a["Y2"][:, j]) for j in range(8)] for i in range(9)]
    )
    change = weight_of(method, W, a) - W
    np.testing.assert_allclose(change, expected, rtol=0, atol=1e-14)
    assert np.linalg.matrix_rank(change) == 4  # r², where LoRA of the same r has rank 2


@pytest.mark.parametrize("p", [0.5, 0.999999])
def test_rank_dropout_zeroes_rows_and_keeps_their_mean(p):
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((40, 4)), rng.standard_normal((3, 4))
    method = LoHa(r=2, rank_dropout=p)
    a = one_part.arrays(method, one_part.site(W), rng, moved=0.5)
    full = x @ (weight_of(method, W, a) - W).T
    got = one_part.output(method, a, x, W, train=True, rng=np.random.default_rng(1)) - x @ W.T
    kept = abs(got).max(axis=0) > 1e-9
    if p > 0.9:  # all rows fell: nothing changes, and nothing is NaN
        assert not kept.any() and np.isfinite(got).all()
    else:
        assert 5 < kept.sum() < 35
        np.testing.assert_allclose(got[:, kept], full[:, kept] / kept.mean(), rtol=0, atol=1e-12)


def test_module_dropout_leaves_out_the_whole_change():
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((5, 4)), rng.standard_normal((3, 4))
    method = LoHa(r=2, module_dropout=0.5)
    a = one_part.arrays(method, one_part.site(W), rng, moved=0.5)
    full = x @ weight_of(method, W, a).T
    rng = np.random.default_rng(2)
    out = [one_part.output(method, a, x, W, train=True, rng=rng) for _ in range(40)]
    dropped = [np.allclose(y, x @ W.T, rtol=0, atol=1e-12) for y in out]
    whole = [np.allclose(y, full, rtol=0, atol=1e-12) for y in out]
    assert all(d != w for d, w in zip(dropped, whole)) and 8 < sum(dropped) < 32


def test_bad_fields_are_named():
    with pytest.raises(Bad, match="r must be at least 1"):
        LoHa(r=0)
    with pytest.raises(Bad, match="rank_dropout"):
        LoHa(rank_dropout=1.0)


@pytest.mark.hf
def test_output_and_gradients_are_those_of_peft():
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((5, 4), (5,), (2, 3, 4), (2, 3, 5)))
    theirs = one_part.Peft(peft.LoHaConfig(r=2, alpha=8, target_modules=["lin"]), W, b, x, c)
    names = dict(X1="hada_w1_a", Y1="hada_w1_b", X2="hada_w2_a", Y2="hada_w2_b")
    theta = {k: theirs.params[v] for k, v in names.items()}
    y, grads = one_part.forward_and_grads(LoHa(r=2, alpha=8.0), theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12)
    for ours, name in names.items():
        np.testing.assert_allclose(grads[ours], theirs.grads[name], rtol=0, atol=1e-12)
