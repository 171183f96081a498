import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.lokr import LoKr, first

KEYS = dict(C="lokr_w1", P="lokr_w1_a", Q="lokr_w1_b", D="lokr_w2", B="lokr_w2_a", A="lokr_w2_b")


def drawn(method, out, in_, seed=0, moved=0.0):
    rng = np.random.default_rng(seed)
    return one_part.arrays(method, one_part.site(np.zeros((out, in_))), rng, moved=moved)


@pytest.mark.parametrize("both", [False, True])
def test_the_change_is_the_kronecker_product_and_its_rank_the_product_of_ranks(both):
    method = LoKr(r=2, alpha=3.0, decompose_both=both)
    a = drawn(method, 30, 42, moved=0.5)  # 5·6 and 6·7
    assert set(a) == ({"P", "Q", "B", "A"} if both else {"C", "B", "A"})
    C = a["P"] @ a["Q"] if both else a["C"]
    change = weight_of(method, np.zeros((30, 42)), a)
    np.testing.assert_allclose(change, 1.5 * np.kron(C, a["B"] @ a["A"]), rtol=0, atol=1e-13)
    assert np.linalg.matrix_rank(change) == 2 * (2 if both else 5)


@pytest.mark.parametrize(
    ("width", "factor", "expected"),
    [(42, -1, 6), (49, -1, 7), (13, -1, 1), (42, 5, 3), (42, 6, 6), (42, 21, 21), (42, 100, 6), (1, -1, 1)],
)
def test_widths_are_factored(width, factor, expected):
    """21 divides 42 and is taken, though it is beyond the root."""
    assert first(width, factor) == expected


@pytest.mark.parametrize(
    ("r", "both", "expected"),
    [
        (1, True, {"P": (4, 1), "Q": (1, 5), "B": (6, 1), "A": (1, 7)}),
        (2, True, {"P": (4, 2), "Q": (2, 5), "B": (6, 2), "A": (2, 7)}),
        (3, True, {"C": (4, 5), "B": (6, 3), "A": (3, 7)}),
        (3, False, {"C": (4, 5), "B": (6, 3), "A": (3, 7)}),
        (4, True, {"C": (4, 5), "D": (6, 7)}),
        (9999, False, {"C": (4, 5), "D": (6, 7)}),
    ],
)
def test_a_matrix_is_whole_where_its_longer_side_is_at_most_twice_r(r, both, expected):
    a = drawn(LoKr(r=r, decompose_both=both), 24, 35)
    assert {k: v.shape for k, v in a.items()} == expected


@pytest.mark.parametrize(("start", "zero"), [("peft", "CP"), ("lycoris", "DA")])
@pytest.mark.parametrize("r", [3, 40])
@pytest.mark.parametrize("both", [False, True])
def test_one_factor_starts_at_zero_and_the_others_uniform_over_their_columns(start, zero, r, both):
    for name, a in drawn(LoKr(r=r, start=start, decompose_both=both), 30 * 31, 40 * 41).items():
        if name in zero:
            assert not a.any()
        else:
            assert 0.9 < abs(a).max() * a.shape[1] ** 0.5 <= 1


def test_rank_dropout_zeroes_rows_and_keeps_their_mean():
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((40, 4)), rng.standard_normal((3, 4))
    method = LoKr(r=1, rank_dropout=0.5)
    a = one_part.arrays(method, one_part.site(W), rng, moved=0.5)
    full = x @ (weight_of(method, W, a) - W).T
    got = one_part.output(method, a, x, W, train=True, rng=np.random.default_rng(1)) - x @ W.T
    kept = abs(got).max(axis=0) > 1e-9
    assert 5 < kept.sum() < 35
    np.testing.assert_allclose(got[:, kept], full[:, kept] / kept.mean(), rtol=0, atol=1e-12)


def test_bad_fields_are_named():
    with pytest.raises(Bad, match="factor must be -1 or at least 1, found 0"):
        LoKr(factor=0)
    with pytest.raises(Bad, match="start must be 'peft' or 'lycoris'"):
        LoKr(start="zero")


@pytest.mark.hf
@pytest.mark.parametrize("factor", [-1, 2, 7, 21])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("r", [1, 2, 4, 30])
def test_output_gradients_and_merged_weight_are_those_of_peft(factor, both, r):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((20, 42), (20,), (2, 3, 42), (2, 3, 20)))
    options = dict(r=r, alpha=5, decompose_both=both)
    config = peft.LoKrConfig(**options, decompose_factor=factor, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c)
    method = LoKr(**options, factor=factor)
    names = {k: KEYS[k] for k in one_part.arrays(method, one_part.site(W), rng)}
    assert set(names.values()) == set(theirs.params)
    theta = {k: theirs.params[v] for k, v in names.items()}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12 * abs(theirs.y).max())
    for ours, name in names.items():
        np.testing.assert_allclose(grads[ours], theirs.grads[name], rtol=0, atol=1e-12 * abs(theirs.grads[name]).max())
    np.testing.assert_allclose(weight_of(method, W, theta), theirs.merged(), rtol=0, atol=1e-12 * abs(W).max())


@pytest.mark.hf
@pytest.mark.parametrize("init", [True, "lycoris"])
def test_starts_are_those_of_peft(init):
    """Shapes, and zero or the bound of the uniform numbers: the numbers themselves come from another generator."""
    import peft
    import torch

    for r, both in ((3, True), (3, False), (40, False)):
        config = peft.LoKrConfig(r=r, decompose_both=both, init_weights=init, target_modules=["0"])
        model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(40 * 41, 30 * 31)), config)
        theirs = {k.split(".0.")[1].removesuffix(".default"): p for k, p in model.named_parameters() if "lokr" in k}
        ours = drawn(LoKr(r=r, decompose_both=both, start="peft" if init is True else init), 30 * 31, 40 * 41)
        assert {KEYS[k]: v.shape for k, v in ours.items()} == {k: tuple(v.shape) for k, v in theirs.items()}
        for k, a in ours.items():
            most = float(theirs[KEYS[k]].detach().abs().max())
            assert abs(most - abs(a).max()) <= 0.1 * most


@pytest.mark.hf
def test_widths_are_factored_as_by_peft():
    from peft.tuners.lokr.layer import factorization

    for width in range(1, 200):
        for factor in (-1, *range(1, 25)):
            assert first(width, factor) == factorization(width, factor)[0], (width, factor)
