import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.methods.selective.shira import SHiRA
from minipeft.train import AdamW


def test_only_the_chosen_elements_change():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((6, 8))
    method = SHiRA(r=2, scale=0.5)
    a = one_part.arrays(method, one_part.site(W), rng, moved=1.0)
    places = list(zip(a["rows"].tolist(), a["cols"].tolist()))
    assert len(set(places)) == 28 and places == sorted(places)  # r (in + out), row by row
    got, expected = method.weight(W, **a), W.copy()
    for (i, j), v in zip(places, a["v"]):
        expected[i, j] += 0.5 * v
    np.testing.assert_array_equal(got, expected)
    assert ((got == W).sum(), (got != W).sum()) == (20, 28)


def test_the_optimiser_knows_the_trained_values_alone():
    a = one_part.arrays(SHiRA(r=2), one_part.site(np.zeros((6, 8))), np.random.default_rng())
    assert all(v.size == 28 for v in AdamW(lr=0.1).init({"v": a["v"]}).values() if v.ndim)


def test_masks_follow_the_seed_and_not_the_generator():
    def places(seed, rng=0):
        a = one_part.arrays(SHiRA(r=2, seed=seed), one_part.site(np.zeros((6, 8))), np.random.default_rng(rng))
        return (a["rows"] * 8 + a["cols"]).tolist()

    assert places(None) == places(None, 5) == places(67280421310721)
    assert places(1) != places(2)


def test_more_elements_than_there_are_is_refused():
    with pytest.raises(Bad, match=r"r \(8 \+ 6\) must be at most 6·8 = 48, found 56 at layers.0.attn.q.weight"):
        one_part.arrays(SHiRA(r=4), one_part.site(np.zeros((6, 8))), np.random.default_rng())


@pytest.mark.hf
@pytest.mark.parametrize("seed", [None, 42])
def test_mask_output_and_gradients_are_those_of_peft(seed):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((6, 8), (6,), (2, 3, 8), (2, 3, 6)))
    theirs = one_part.Peft(peft.ShiraConfig(r=2, random_seed=seed, target_modules=["lin"]), W, b, x, c)
    method = SHiRA(r=2, seed=seed)
    a = one_part.arrays(method, one_part.site(W), rng) | dict(v=theirs.params["shira_weight"])
    indices = theirs.model.base_model.model.lin.shira_indices["default"].numpy()
    np.testing.assert_array_equal(np.stack([a["rows"], a["cols"]]), indices)
    np.testing.assert_allclose(x @ method.weight(W, **a).T + b, theirs.y, rtol=0, atol=1e-13)
    G = np.einsum("bto,bti->oi", c, x)
    np.testing.assert_allclose(G[a["rows"], a["cols"]], theirs.grads["shira_weight"], rtol=0, atol=1e-13)
    np.testing.assert_allclose(method.weight(W, **a), theirs.merged(), rtol=0, atol=1e-15)
