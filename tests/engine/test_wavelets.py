"""Filters have the properties that define them, and are those that others have tabulated; synthesis inverts the analysis."""

import numpy as np
import pytest

from minipeft.engine.wavelets import FAMILIES, TURNED, scaling_filter, synthesis, wavelet_filter

U = 2.0**-52


@pytest.mark.parametrize("family", FAMILIES)
def test_a_filter_is_orthogonal_to_its_own_even_shifts_and_to_the_other(family):
    h, g = scaling_filter(family), wavelet_filter(family)
    L = len(h)
    assert abs(h.sum() - 2**0.5) < L * U
    for m in range(L // 2):
        assert abs(h[: L - 2 * m] @ h[2 * m :] - (m == 0)) < 8 * L * U
        assert abs(g[: L - 2 * m] @ g[2 * m :] - (m == 0)) < 8 * L * U
        assert abs(h[: L - 2 * m] @ g[2 * m :]) < 8 * L * U and abs(g[: L - 2 * m] @ h[2 * m :]) < 8 * L * U


def moment(x, p, centre=0):
    """Σ x_k (k − centre)^p, over what it is made of."""
    k = (np.arange(len(x)) - centre) ** float(p)
    return abs(x @ k) / (abs(x) @ abs(k))


@pytest.mark.parametrize("family", FAMILIES)
def test_how_many_moments_vanish(family):
    """N of dbN's and symN's wavelets and no more; 2N of coifN's, and its scaling function's but the first."""
    N, h, g = int(family.lstrip("dbsymcoif")), scaling_filter(family), wavelet_filter(family)
    vanishing = 2 * N if family.startswith("coif") else N
    assert len(h) == (6 * N if family.startswith("coif") else 2 * N)
    assert all(moment(g, p) < 1e-12 for p in range(vanishing)) and moment(g, vanishing) > 1e-9
    if family.startswith("coif"):
        assert all(moment(h, p, 2 * N) < 1e-13 for p in range(1, 2 * N))


def test_symlets_are_daubechies_filters_but_for_their_phase():
    """The same autocorrelation; and nearer to symmetric from N = 4 on."""

    def skewed(h):
        return min(np.linalg.norm(h - np.roll(h[::-1], s)) for s in range(len(h)))

    for N in TURNED:
        h, s = scaling_filter(f"db{N}"), scaling_filter(f"sym{N}")
        np.testing.assert_allclose(np.correlate(h, h, "full"), np.correlate(s, s, "full"), rtol=0, atol=64 * N * U)
        assert skewed(s) < 0.9 * skewed(h) if N >= 4 else (h == s).all()


def test_daubechies_filters_are_of_minimal_phase():
    """Their energy comes first."""
    for N in range(2, 11):
        h = scaling_filter(f"db{N}")
        assert (h[:N] ** 2).sum() > 0.9 and abs(h[-1]) < h[0]


def test_closed_forms():
    r3, r7 = 3**0.5, 7**0.5
    db2, coif1 = np.array([1 + r3, 3 + r3, 3 - r3, 1 - r3]), [1 - r7, 5 + r7, 14 + 2 * r7, 14 - 2 * r7, 1 - r7, r7 - 3]
    np.testing.assert_allclose(scaling_filter("db1"), [0.5**0.5] * 2, rtol=0, atol=U)
    np.testing.assert_allclose(scaling_filter("db2"), db2 / 32**0.5, rtol=0, atol=4 * U)
    np.testing.assert_allclose(scaling_filter("sym2"), db2 / 32**0.5, rtol=0, atol=4 * U)
    np.testing.assert_allclose(scaling_filter("coif1"), np.array(coif1) / 512**0.5, rtol=0, atol=4 * U)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 8, 13])
def test_synthesis_gives_every_signal(family, n):
    """Its rows are orthonormal: S Sᵀ = 1, so that analysis by Sᵀ and synthesis give what was there."""
    S = synthesis(n, family, np.dtype(float))
    P = n + len(scaling_filter(family)) - 2
    assert S.shape == (n, P + P % 2)
    np.testing.assert_allclose(S @ S.T, np.eye(n), rtol=0, atol=64 * len(scaling_filter(family)) * U)


@pytest.mark.hf
@pytest.mark.parametrize("family", FAMILIES)
def test_filters_are_those_of_pefts_tables(family):
    """Which are rounded at 10⁻¹² where the tables are not orthonormal themselves."""
    from peft.tuners.waveft.wavelet import Wavelet

    theirs = Wavelet(family)
    h, g = np.array(theirs.rec_lo), np.array(theirs.rec_hi)
    L = len(h)
    off = max(abs(h[: L - 2 * m] @ h[2 * m :] - (m == 0)) for m in range(L // 2))
    rounded = family == "db3" or family.startswith("sym")
    assert off < (5e-12 if rounded else 8 * U)
    np.testing.assert_allclose(scaling_filter(family), h, rtol=0, atol=5e-12 if rounded else 16 * U)
    np.testing.assert_allclose(wavelet_filter(family), g, rtol=0, atol=5e-12 if rounded else 16 * U)
