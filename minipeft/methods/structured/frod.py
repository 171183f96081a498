"""FRoD: Full-Rank Efficient Fine-Tuning with Rotational Degrees for Fast Convergence. Wan et al. 2025, https://arxiv.org/abs/2512.23485

    W' = U (S + diag λ) Vᵀ              at first S = 0 and U diag(λ) Vᵀ = W, the columns of U of length 1

λ and the entries of S, at k random places off its diagonal, are trained. V (in, in) and the places are one for the matrices W_i of
one name in all layers: [W_1; W_2; …] = [Q_1; Q_2; …] R, E the eigenvectors of the mean of (Q_iᵀ Q_i + α 1)⁻¹, V = Rᵀ E; or, where
that has fewer rows than columns, its right singular vectors. A column of W V⁻ᵀ that is 0 but for rounding is 0 in U.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of W' − W.
Differs  HF peft groups by the last two words of a module's name, draws the places of one group after the other, and decomposes in float32.
         It does not save U, and in loading makes it of a V of its own, which is rounding's choice, and beside which it then puts the
         saved one; there a column that is 0 is rounding's noise, made of length 1. The authors' own adds U (S + diag λ) Vᵀ to
         W, which is then there twice, with S transposed except in merging.

>>> U, V = np.eye(2), np.array([[0., 1.], [1., 0.]])
>>> FRoD().weight(None, U=U, V=V, lam=np.array([2., 3.]), s=np.array([5.]), rows=np.array([0]), cols=np.array([1]))
array([[5., 2.],
       [3., 0.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    QUERY_VALUE, Method, found, found_together, free, in_layers, positive, requires, size, stored, trained, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.engine.factors import finite
from minipeft.torch_random import permutation

GROUP = in_layers()


def basis(Ws: list[Any], alpha: float) -> Any:
    """V."""
    every = np.concatenate(Ws)
    if len(every) < every.shape[1]:
        return np.linalg.svd(every)[2].T
    Q, R = np.linalg.qr(every)
    parts = np.split(Q, np.cumsum([len(W) for W in Ws])[:-1])
    return R.T @ np.linalg.eigh(sum(np.linalg.inv(q.T @ q + alpha * np.eye(len(R))) for q in parts))[1]


def directions(W: Any, V: Any, least: float = 2.0**-23) -> tuple[Any, Any]:
    """U and λ; what is below `least` times the columns of W and the largest is rounding."""
    whole = np.linalg.matrix_rank(V) == len(V)
    Y = np.linalg.solve(V, W.T).T if whole else W @ np.linalg.pinv(V, rcond=1e-6).T
    lam = np.linalg.norm(Y, axis=0)
    kept = lam > len(V) * least * lam.max()
    return np.where(kept, Y / np.where(kept, lam, 1), 0), lam * kept


def decomposed(method: Any, every: list[Any]) -> dict[str, dict[str, Any]]:
    """V, U and λ at every site."""
    Ws, at = {s: finite(f"frod: {s}", W) for s, W in every[0].weights.items()}, every[0].at
    groups: dict[str, list[str]] = {}
    for site, holder in GROUP(at).items():
        groups.setdefault(holder, []).append(site)
    V = {s: B for h, own in groups.items() for B in [basis([Ws[s] for s in own], at[h].alpha)] for s in own}
    return {s: dict(zip(("U", "lam"), directions(Ws[s], V[s])), V=V[s]) for s in (f.site.name for f in every)}


def places(method: Any, facts: Any) -> dict[str, Any]:
    """k places off the diagonal."""
    n = facts["in"]
    rows, cols = np.divmod(permutation(method.seed, n * n - n)[: facts["k"]], n - 1)
    return dict(rows=rows, cols=cols + (cols >= rows))


FOUND = found_together(decomposed, "of the weights of all layers")
PLACES = found(places, "drawn from `seed`")


@dataclass(frozen=True)
class FRoD(Method):
    """A weight as directions that layers share, their lengths, and a few turns among them."""

    name = "frod"
    targets: str = QUERY_VALUE
    takes = "linears"
    rate: float = within("(0, 1]", 0.01, tried=0.08)  # of S that is trained
    alpha: float = positive(1e-3)
    seed: int = free(0)
    dropout: float = within("[0, 1)", 0.0)

    two = requires("in > 1", "expected more than one input, found {in},")
    k = size("max(1, min(int(in in rate), in in - in))")
    U = stored("out", "in", start=FOUND)
    V = stored("in", "in", start=FOUND, shared_by=GROUP)
    rows = stored("k", start=PLACES, below="in", shared_by=GROUP)
    cols = stored("k", start=PLACES, below="in", distinct_with="rows", shared_by=GROUP)
    lam = trained("in", start=FOUND)
    s = trained("k")

    def weight(self, W: Any, *, U: Any, V: Any, lam: Any, s: Any, rows: Any, cols: Any) -> Any:
        n = V.shape[0]
        return (U * lam + U @ ops.put(s, index=(rows, cols), shape=(n, n))) @ V.T
