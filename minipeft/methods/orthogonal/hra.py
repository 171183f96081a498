"""HRA: Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation. Yuan, Liu, Xu 2024, https://arxiv.org/abs/2405.17484

    W' = W H,    H = (I − 2 v_1 v_1ᵀ) ⋯ (I − 2 v_r v_rᵀ),    v_i = u_i/‖u_i‖      (paper, eq. 4)
    H  = I − 2 V Vᵀ,  V the columns of U made orthonormal one after the other    with gram_schmidt (paper, §3.3)

H is orthogonal and differs from I in r dimensions. The loss has λ Σ ‖I − VᵀV‖² over the sites besides, V = [v_1 … v_r].

Merges   exactly: W' is an ordinary weight.
Differs  Columns start in pairs of equal ones, so that H = I; an odd r, or gram_schmidt, for which equal columns have no meaning,
         begins with columns of their own, and W' ≠ W. HF peft starts with pairs there too, and computes NaN or an H that is not
         orthogonal; it has no λ. A column of noughts is refused nowhere, and gives NaN.

>>> HRA(r=1).change(u=np.array([[3.], [4.]])).onto(np.array([[1., 0.]])).round(2)
array([[ 0.28, -0.96]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import QUERY_VALUE, Method, at_least, count, found, requires, rotated, trained
from minipeft.engine import ops
from minipeft.engine.backend import xp


def pairs(method: Any, facts: Any) -> Any:
    """Uniform columns, each twice where that makes H = I."""
    n, r = facts["in"], method.r // 2 if method.identity else method.r
    return np.repeat(facts.rng.uniform(-(r**-0.5), r**-0.5, (n, r)), method.r // r, axis=1)


@dataclass(frozen=True)
class HRA(Method):
    """The inputs reflected at r hyperplanes."""

    name = "hra"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(8, tried=4)
    gram_schmidt: bool = False
    lam: float = at_least(0, 0.0, also=(0.5,))  # λ

    full = requires(
        "r <= in", "r must be at most {in}, as no more columns are orthogonal, found {r}", when="gram_schmidt"
    )
    u = trained(
        "in", "r", start=found(pairs, "U(±1/√(r/2)), each column twice; U(±1/√r) with gram_schmidt or an odd r")
    )

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Whether the reflections are pairs."""
        return self.r % 2 == 0 and not self.gram_schmidt

    def vectors(self, u: Any) -> list[Any]:
        """v_1 … v_r, each (in, 1)."""
        v: list[Any] = []
        for i in range(self.r):
            w = u[:, i : i + 1]
            for other in v if self.gram_schmidt else ():
                w = w - other * ops.sum(other * w)
            v.append(w / ops.norm(w))
        return v

    def change(self, *, u: Any) -> Any:
        H = xp.eye(u.shape[0], dtype=u.dtype)
        for v in self.vectors(u):
            H = H - 2 * (H @ v) @ v.T
        return rotated(ops.swapaxes(H)[None])

    def penalty(self, arrays: Any) -> Any:
        if not self.lam:
            return None
        V = [ops.concatenate(*self.vectors(own["u"]), axis=1) for site, own in arrays.items() if site]
        return self.lam * sum(ops.sum((xp.eye(self.r, dtype=v.dtype) - v.T @ v) ** 2) for v in V)
