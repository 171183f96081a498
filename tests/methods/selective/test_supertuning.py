import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.selective.supertuning import SuperTuning

KEYS = dict(v="supertuning_values", A="supertuning_lora_A.weight", B="supertuning_lora_B.weight")


def drawn(method, W, moved=1.0):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(1), moved=moved)


@pytest.mark.parametrize("top", [True, False])
def test_the_extreme_elements_change_and_no_other(top):
    W = np.random.default_rng(0).standard_normal((6, 8))
    method = SuperTuning(sparsity=0.75, top=top)
    a = drawn(method, W)
    changed = weight_of(method, W, a) - W
    by_size = np.sort(abs(W).ravel())
    assert (changed != 0).sum() == 12
    assert ((changed != 0) == (abs(W) >= by_size[-12] if top else abs(W) <= by_size[11])).all()
    order = np.argsort(-abs(W).ravel() if top else abs(W).ravel())  # the most extreme gets the first value
    np.testing.assert_allclose(changed.ravel()[order[:12]], a["v"], rtol=0, atol=1e-15)


def test_supra_adds_a_low_rank():
    W = np.random.default_rng(0).standard_normal((6, 8))
    method = SuperTuning(sparsity=0.75, r=2, scale=1.5)
    a = drawn(method, W)
    sparse = weight_of(SuperTuning(sparsity=0.75), W, {k: a[k] for k in "vp"})
    np.testing.assert_allclose(weight_of(method, W, a) - sparse, 1.5 * a["B"] @ a["A"], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("sparsity", "out", "n"), [(0.9, 24, 23), (0.9, 100, 99), (0.0, 3, 30), (0.5, 3, 15)])
def test_the_number_of_elements_is_cut_off_in_floating_point(sparsity, out, n):
    assert drawn(SuperTuning(sparsity=sparsity), np.ones((out, 10)))["v"].shape == (n,)


def test_of_equals_the_first_counts():
    W = np.array([[2.0, -3.0, 2.0], [1.0, -2.0, 3.0]])
    assert drawn(SuperTuning(sparsity=0.3), W)["p"].tolist() == [1, 5, 0, 2]
    assert drawn(SuperTuning(sparsity=0.3, top=False), W)["p"].tolist() == [3, 0, 2, 4]


def test_dropout_is_the_low_ranks_alone():
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((5, 40)), rng.standard_normal((1, 3, 40))
    options = dict(train=True, rng=np.random.default_rng(2))
    plain = SuperTuning(sparsity=0.5, dropout=0.5)
    a = drawn(plain, W)
    np.testing.assert_allclose(
        one_part.output(plain, a, x, W, **options), x @ weight_of(plain, W, a).T, rtol=0, atol=1e-13
    )
    supra = SuperTuning(sparsity=0.5, r=2, dropout=0.5)
    a = drawn(supra, W)
    low = one_part.output(supra, a, x, W, **options) - x @ weight_of(plain, W, {k: a[k] for k in "vp"}).T
    keep = np.random.default_rng(2).random(x.shape, dtype=np.float32) >= 0.5
    np.testing.assert_allclose(low, (2 * keep * x) @ (supra.scale * a["B"] @ a["A"]).T, rtol=0, atol=1e-12)


def test_a_sparsity_that_leaves_nothing_is_refused():
    with pytest.raises(Bad, match=r"sparsity 0.99 leaves none of 6·8 elements at layers.0.attn.q.weight"):
        drawn(SuperTuning(), np.ones((6, 8)))
    with pytest.raises(Bad, match=r"sparsity must lie in \[0, 1\), found 1"):
        SuperTuning(sparsity=1.0)


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(6, 8), (13, 5)])
@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize(("sparsity", "r", "alpha"), [(0.9, 0, None), (0.0, 0, None), (0.7, 3, None), (0.7, 20, 5.0)])
def test_places_output_gradients_and_merged_weight_are_those_of_peft(shape, top, sparsity, r, alpha):
    import peft

    rng = np.random.default_rng(0)
    out, in_ = shape
    W, b, x, c = (rng.standard_normal(s) for s in (shape, (out,), (2, 3, in_), (2, 3, out)))
    config = peft.SupertuningConfig(
        sparsity=sparsity, select_top=top, r=r or None, lora_alpha=alpha, target_modules=["lin"]
    )
    theirs = one_part.Peft(config, W, b, x, c)
    method = SuperTuning(sparsity=sparsity, top=top, r=r, scale=alpha / r if alpha else 2.0)
    a = drawn(method, W)
    np.testing.assert_array_equal(a["p"], theirs.model.base_model.model.lin.supertuning_indices["default"].numpy())
    theta = {k: theirs.params[name] for k, name in KEYS.items() if k in a}
    assert {KEYS[k] for k in theta} == set(theirs.params)
    y, grads = one_part.forward_and_grads(method, theta, dict(p=a["p"]), x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    for k in theta:
        np.testing.assert_allclose(grads[k], theirs.grads[KEYS[k]], rtol=0, atol=1e-13 * abs(grads[k]).max())
    merged = weight_of(method, W, theta | dict(p=a["p"]))
    np.testing.assert_allclose(merged, theirs.merged(), rtol=0, atol=1e-14 * abs(merged).max())
