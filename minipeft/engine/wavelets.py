"""Orthogonal wavelets, by the equations that define them, and one step of their synthesis as a matrix.

h       the scaling filter, L numbers: Σ h = √2, Σ_k h_k h_{k+2m} = [m = 0];   g_k = (−1)^k h_{L−1−k}, the wavelet's
dbN     L = 2N: h(z) ~ (1 + z)^N Π (z − z_i), z_i the roots in the unit circle of P((2 − z − 1/z)/4),
        P(y) = Σ_{k<N} C(N−1+k, k) y^k                                    (Daubechies 1988)
symN    the same with some roots turned inside out, z_i → 1/z_i: nearly symmetric
coifN   L = 6N: Σ_k h_k p(k − 2N) = √2 p(0) and Σ_k (−1)^k h_k p(k) = 0 for every polynomial p below degree 2N
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from minipeft.engine.backend import once

# of symN the roots that are turned, 1 for yes: pairs of complex ones by their size, then the real one; as is tabulated everywhere
TURNED = {2: "0", 3: "0", 4: "10", 5: "10", 6: "011", 7: "100", 8: "1010", 9: "0110", 10: "01011"}
FAMILIES = (*(f"db{n}" for n in range(1, 11)), *(f"sym{n}" for n in TURNED), *(f"coif{n}" for n in range(1, 4)))


@cache
def scaling_filter(family: str) -> np.ndarray:
    """h of one of FAMILIES, in float64."""
    name, N = family.rstrip("0123456789"), int(family.lstrip("abcdefghijklmnopqrstuvwxyz"))
    if name == "coif":
        return _coiflet(N)
    return _spectral(N, TURNED[N] if name == "sym" else "0" * N)


def wavelet_filter(family: str) -> np.ndarray:
    """g."""
    h = scaling_filter(family)
    return h[::-1] * (-1.0) ** np.arange(len(h))


@once
def synthesis(n: int, family: str, dtype: Any) -> np.ndarray:
    """(n, P): what each of P coefficients, low and then high ones, gives to n numbers; P is n + L − 2, or one more to be even.

    Coefficient k begins at place 2k of h or g; of what comes out L − 2 numbers are cut off in front, and those behind the nth.
    """
    h, g = scaling_filter(family), wavelet_filter(family)
    L = len(h)
    half = (n + L - 1) // 2
    S = np.zeros((2 * half + L - 2, 2 * half), dtype)
    for k in range(half):
        S[2 * k : 2 * k + L, k], S[2 * k : 2 * k + L, half + k] = h, g
    return S[L - 2 : L - 2 + n]


def _spectral(N: int, turned: str) -> np.ndarray:
    P = np.array([math.comb(N - 1 + k, k) for k in range(N)][::-1], float)
    y = np.roots(P)
    for _ in range(3):  # Newton: the last digits
        y = y - np.polyval(P, y) / np.polyval(np.polyder(P), y)
    u = 1 - 2 * y  # (z + 1/z)/2
    z = u + np.sqrt(u * u - 1 + 0j)
    z = np.where(abs(z) < 1, z, 1 / z)
    real = abs(z.imag) < 1e-9
    order = sorted((i for i in range(len(z)) if z[i].imag > 0 or real[i]), key=lambda i: (real[i], abs(z[i])))
    roots = [1 / z[i] if turn == "1" else z[i] for i, turn in zip(order, turned, strict=False)]
    roots += [q.conjugate() for q in roots if abs(q.imag) > 1e-9]
    h = np.ones(1)
    for q in [-1.0] * N + sorted(roots, key=abs):
        h = np.convolve(h, [1, -q]) / (1 - q)
    return math.sqrt(2) * h.real


def _coiflet(N: int) -> np.ndarray:
    """By Newton's method from the symmetric filter of as many moments. At the solution the equations nearly depend on each

    other: what is left of them is computed exactly, in fractions.
    """
    L, centre = 6 * N, 2 * N
    cosine, sine = np.array([0.25, 0.5, 0.25]), np.array([-0.25, 0.5, -0.25])
    h = np.zeros(L)  # over √2
    for k in range(N):
        part = np.ones(1)
        for factor in [cosine] * N + [sine] * k:
            part = np.convolve(part, factor)
        h[centre - N - k : centre + N + k + 1] += math.comb(N - 1 + k, k) * part
    moments = [
        [(sign**k * (k - centre) ** p, (2 * N) ** p) for k in range(L)] for sign in (-1, 1) for p in range(2 * N)
    ]
    wanted = [0] * (2 * N) + [1] + [0] * (2 * N - 1)
    for _ in range(9):
        exact = [Fraction(x) for x in h]
        left: list[Any] = [
            sum(a * b for a, b in zip(exact, exact[2 * m :])) - Fraction(m == 0, 2) for m in range(L // 2)
        ]
        left += [sum(Fraction(*v) * x for v, x in zip(row, exact)) - w for row, w in zip(moments, wanted)]
        J = [np.pad(h[2 * m :], (0, 2 * m)) + np.pad(h[: L - 2 * m], (2 * m, 0)) for m in range(L // 2)]
        J += [np.array([a / b for a, b in row]) for row in moments]
        h = h - np.linalg.lstsq(np.array(J), np.array(left, float), rcond=None)[0]
    return math.sqrt(2) * h
