"""Factors of a matrix, decomposed on the host in float64: singular triples, or A (r, in) and B (out, r) of a part of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.engine.backend import name, to_host, xp
from minipeft.errors import Bad


def finite(what: str, W: Any) -> np.ndarray:
    """W on the host, in float64; `what` names it. Raises `Bad` for NaN and infinity: their decomposition fails, or never ends."""
    W = np.asarray(to_host(W), np.float64)
    if not (good := np.isfinite(W)).all():
        raise Bad(
            f"{what}: expected finite numbers to decompose, found {int((~good).sum())} of {W.size} NaN or infinite"
        )
    return W


def singular(what: str, W: Any) -> tuple[Any, Any, Any]:
    """U, Σ, Vᵀ of W, which `what` names. Raises `Bad` as `finite`."""
    return np.linalg.svd(finite(what, W), full_matrices=False)


def as_torch(what: str, W: Any) -> tuple[Any, Any, Any]:
    """The same, each pair of vectors with the sign that it has in torch, on the host, in float32. `what` names W.

    A decomposition leaves it open; torch has it from MKL's LAPACK, which goes by the shape as below. Where singular values lie so
    near each other that roundings decide, some signs may differ.
    """
    U, S, Vt = singular(what, W)
    narrow, (m, n) = np.asarray(W, np.float32), W.shape
    if m >= n:  # tall from ⌊1.5 n⌋ on: then R's, of W = Q R
        other = _svd32(narrow if m < n * 3 // 2 else _qr(narrow)[1])[2]
    else:  # L's, of W = L Q; up to 20 m by way of a lower bidiagonal matrix, which LAPACK makes of what is a little wider than tall
        Q, R = _qr(narrow.T)
        L = R.T if n >= 20 * m or m == 1 else np.pad(R.T, ((0, 2), (0, 3)))
        other = _svd32(L)[2][:m, :m] @ Q.T
    sign = np.where((other * Vt).sum(axis=1) < 0, -1.0, 1.0)
    return U * sign, S, Vt * sign[:, None]


def _svd32(W: np.ndarray) -> tuple[Any, Any, Any]:
    """LAPACK's sgesdd: NumPy's own decomposes in float64."""
    from scipy.linalg import svd

    return svd(W, full_matrices=False, check_finite=False)


def _qr(W: np.ndarray) -> tuple[Any, Any]:
    """LAPACK's, in the dtype of W: its zeros are those of float32."""
    from scipy.linalg import qr

    return qr(W, mode="economic", check_finite=False)


def orthonormal(what: str, R: Any) -> Any:
    """The nearest matrix with orthonormal rows, in R's dtype; `what` names R. Raises `Bad` as `finite`, on the host."""
    if name() == "numpy":
        U, _, Vt = singular(what, R)
    else:  # a device is not waited for, and its decomposition ends in any case
        U, _, Vt = xp.linalg.svd(R.astype(xp.float64), full_matrices=False)
    return (U @ Vt).astype(R.dtype)


def principal(W: np.ndarray, r: int) -> tuple[Any, Any]:
    """B A is the part of the r largest singular values: A = √Σ_r V_rᵀ, B = U_r √Σ_r."""
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(S[:r])
    return root[:, None] * Vt[:r], U[:, :r] * root


def leading(W: np.ndarray, r: int) -> tuple[Any, Any]:
    """B A has W's first r columns: W = Q R, A the first r rows of R, B the first r columns of Q."""
    Q, R = np.linalg.qr(W)
    return R[:r], Q[:, :r]


def sketched(W: np.ndarray, r: int, niter: int, rng: Any) -> tuple[Any, Any]:
    """Nearly `principal`: within the span of r random directions after niter powers of W Wᵀ."""
    U, S, Vt = randomised(W, rng.standard_normal((min(W.shape), r)), niter)
    root = np.sqrt(S)
    return root[:, None] * Vt, U * root


def randomised(M: np.ndarray, random: np.ndarray, steps: int = 2, signs: bool = False) -> tuple[Any, Any, Any]:
    """U, Σ, Vᵀ of about the largest triples of M, as many as `random` (min(M.shape), n) has columns, by steps of its powers.

    Of M as it is, or of its transpose where it has fewer rows than columns. Halko, Martinsson & Tropp 2011, algorithm 4.4; what torch.svd_lowrank computes,
    with its `signs` too if they are asked for (`as_torch`).
    """
    wide = M.shape[0] < M.shape[1]
    M = M.T if wide else M
    Q, _ = _qr(M @ random)
    for _ in range(steps):
        Q, _ = _qr(M.T @ Q)
        Q, _ = _qr(M @ Q)
    U, S, Vt = as_torch("what the directions leave", Q.T @ M) if signs else np.linalg.svd(Q.T @ M, full_matrices=False)
    return (Vt.T, S, (Q @ U).T) if wide else (Q @ U, S, Vt)


def signs_hold(M: np.ndarray, random: np.ndarray, steps: int) -> bool:
    """Whether the signs of `randomised` are M's own: they stay in sixteen tries in float32, each with other roundings."""
    noise, size = np.random.default_rng(0), 2.0**-20 * M.std()
    U = randomised(M, random, steps, signs=True)[0]

    def same() -> bool:
        near = (M + size * noise.standard_normal(M.shape)).astype(np.float32)
        other = randomised(near, random.astype(np.float32), steps, signs=True)[0]
        return bool(((U * other).sum(axis=0) > 0).all())

    return all(same() for _ in range(16))


def clusters(X: np.ndarray, k: int, steps: int, seed: int) -> np.ndarray:
    """(n,) the cluster, 0 … k − 1, of each row of X by Lloyd's k-means from k of them, as scikit-learn's KMeans(init="random", n_init=1)."""
    X = X - X.mean(axis=0)
    centres = X[np.random.RandomState(seed).choice(len(X), k, replace=False, p=np.full(len(X), 1 / len(X)))]
    labels, enough = np.full(len(X), -1), 1e-4 * X.var(axis=0).mean()

    def nearest(centres: np.ndarray) -> np.ndarray:
        return ((centres**2).sum(axis=1) - 2 * X @ centres.T).argmin(axis=1)

    for _ in range(steps):
        before, labels = labels, nearest(centres)
        if same := np.array_equal(before, labels):
            break
        of = (labels == np.arange(k)[:, None]).astype(X.dtype)  # (k, n)
        if len(empty := np.flatnonzero(of.sum(axis=1) == 0)):  # they take the rows that are farthest from their centres
            far = np.argsort(-((X - centres[labels]) ** 2).sum(axis=1), kind="stable")[: len(empty)]
            of[:, far] = 0
            of[empty, far] = 1
        moved = of @ X / of.sum(axis=1, keepdims=True)
        shift, centres = ((moved - centres) ** 2).sum(), moved
        if shift <= enough:
            break
    return labels if same else nearest(centres)


@dataclass
class PCA:
    """Incremental PCA: at most n directions V (n, in) with singular values S, each row's largest entry positive."""

    what: str  # is decomposed, for errors
    n: int
    V: np.ndarray
    S: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: Any = 0.0
    rows: int = 0
    total: float = 0.0  # Σ‖x − μ‖²
    settled: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # directions that hardly turned

    def add(self, X: np.ndarray, tau: float) -> None:
        X = X.astype(np.float64)
        k, batch_mean = len(X), X.mean(axis=0)
        shift = np.sqrt(self.rows * k / (self.rows + k)) * (self.mean - batch_mean)
        new = np.vstack([X - batch_mean, shift])
        self.total += float((new**2).sum())
        self.mean = (self.rows * self.mean + k * batch_mean) / (self.rows + k)
        self.rows += k
        _, S, V = singular(self.what, np.vstack([self.S[:, None] * self.V, new]))
        n = min(self.n, np.count_nonzero(S / (S[0] or 1.0) > 1e-12))  # the rest are directions without variance
        S, V = S[:n], V[:n]
        V = V * np.sign(V[np.arange(len(V)), abs(V).argmax(axis=1)])[:, None]
        both = min(len(V), len(self.V))
        self.settled = np.zeros(len(V), bool)
        self.settled[:both] = (V[:both] * self.V[:both]).sum(axis=1) >= tau
        self.S, self.V = S, V

    @property
    def explained(self) -> np.ndarray:
        return self.S**2 / (self.total or 1.0)
