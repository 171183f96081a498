import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.methods.structured.fourierft import FourierFT


def test_the_change_is_the_sum_of_cosines():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((4, 6))
    method = FourierFT(n_frequency=5, scaling=3.0)
    a = one_part.arrays(method, one_part.site(W), rng)
    j, k = np.indices(W.shape)
    expected = W.copy()
    for c, row, col in zip(a["c"], a["rows"], a["cols"]):
        expected += 3 / 24 * c * np.cos(2 * np.pi * (row * j / 4 + col * k / 6))
    np.testing.assert_allclose(method.weight(W, **a), expected, rtol=0, atol=1e-14)


def test_places_are_distinct_and_come_from_the_seed():
    def places(**fields):
        a = one_part.arrays(
            FourierFT(n_frequency=24, **fields), one_part.site(np.zeros((4, 6))), np.random.default_rng()
        )
        return list(zip(a["rows"].tolist(), a["cols"].tolist()))

    assert places() == places() and sorted(places()) == [(i, j) for i in range(4) for j in range(6)]
    assert places() != places(seed=1)


def test_more_coefficients_than_places_is_refused():
    with pytest.raises(Bad, match=r"n_frequency must be at most 4·6 = 24, found 25 at layers.0.attn.q.weight"):
        one_part.arrays(FourierFT(n_frequency=25), one_part.site(np.zeros((4, 6))), np.random.default_rng())
    with pytest.raises(Bad, match="start"):
        FourierFT(start="zeros")


@pytest.mark.hf
def test_places_are_those_of_peft():
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((5, 4), (5,), (2, 3, 4), (2, 3, 5)))
    theirs = one_part.Peft(peft.FourierFTConfig(n_frequency=7, scaling=20.0, target_modules=["lin"]), W, b, x, c)
    method = FourierFT(n_frequency=7, scaling=20.0)
    stored = one_part.arrays(method, one_part.site(W), rng) | dict(c=theirs.params["fourierft_spectrum"])
    # HF peft transforms in float32
    np.testing.assert_allclose(method.weight(W, **stored), theirs.merged(), rtol=0, atol=20 * 2**-20)
