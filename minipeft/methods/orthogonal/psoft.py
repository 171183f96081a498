"""PSOFT: Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation. Wu et al. 2025, https://arxiv.org/abs/2505.11235

    W' = W + B (R − I) A,    R = diag(β) O diag(α)          B A = U_r Σ_r V_rᵀ, W's r largest singular triples
    O  = (I + Q)(I − Q)⁻¹                                   cayley="exact"
    O  = I + 2 Q + 2 Q² + … + 2 Q^{k−1} + Q^k               cayley="neumann", k = max(terms − 1, 3)
    A  = V_rᵀ, B = U_r Σ_r;  or A = √Σ_r V_rᵀ, B = U_r √Σ_r with split="pissa"

Q is skew-symmetric; q fills its upper triangle, row by row. With eps the series has Q eps/‖Q‖ where ‖Q‖ is above eps. 2 terms
are I + 2Q, and 1 is I. Without orth O is trained itself.

Merges   exactly: W' is an ordinary weight.
Differs  HF peft puts a scale s = alpha/r before B and 1/s into it, so its alpha changes nothing and is no setting here. Its
         files lack A and B: it decomposes W anew, in float32, where they are loaded, and the signs of singular vectors, on
         which R − I depends, are those of that machine. Here A and B are stored, and start with torch's signs on the
         host; with svd="lowrank" as torch.svd_lowrank finds them from `seed`. As in OFT's series 3 terms equal 4.

>>> one = dict(A=np.eye(2), B=np.diag([4., 1.]), alpha=np.ones(2), beta=np.array([1., 2.]))
>>> PSOFT(r=2).change(q=np.array([1.]), **one).onto(np.diag([4., 1.]))  # O turns by a quarter, β doubles its second row
array([[ 0.,  4.],
       [-2.,  0.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    QUERY_VALUE, Method, at_least, cayley, choice, count, fill, found, free, lowrank, requires, skew, stored, trained, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.factors import as_torch, finite, randomised
from minipeft.torch_random import TorchGenerator


def part(method: Any, facts: Any) -> dict[str, Any]:
    """A and B."""
    what, r = f"{method.name}: {facts['site']}", method.r
    if method.svd == "full":
        U, S, Vt = as_torch(what, facts.W)
    else:
        W = finite(what, facts.W)
        U, S, Vt = randomised(W, directions(method, W), method.niter, signs=True)
    A, B = np.sqrt(S[:r, None]) * Vt[:r], U[:, :r] * np.sqrt(S[:r])
    root = np.linalg.norm(A, axis=1) if method.split == "psoft" else np.ones(r)
    return dict(A=A / root[:, None], B=B * root)


def directions(method: Any, W: np.ndarray) -> np.ndarray:
    """Where the low-rank decomposition of W begins."""
    return TorchGenerator(method.seed).normal((min(W.shape), method.r)).astype(float)


PART = found(part, "W's first r singular triples")


@dataclass(frozen=True)
class PSOFT(Method):
    """The principal part of the weight, turned and stretched within its space."""

    name = "psoft"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(32, small=4, tried=3)
    split: str = choice("psoft", "pissa")
    orth: bool = True
    scale_in: bool = True  # α is trained
    scale_out: bool = True  # β is trained
    cayley: str = choice("exact", "neumann", tried="neumann")
    terms: int = at_least(1, 5, 1000, also=(2, 3))  # of the series
    eps: float | None = within("(0, 1)", None, also=(0.3,))
    svd: str = choice("full", "lowrank", varied=False)
    niter: int = count(10, least=0)  # of the low-rank one
    seed: int = free(0)  # of the directions that it begins with
    dropout: float = within("[0, 1)", 0.0)

    rank = requires("r <= min(in, out)", "r must be at most {min(in, out)}, found {r}")
    q = trained("r (r - 1) / 2", when="orth")
    O = trained("r", "r", start=found(lambda method, facts: np.eye(method.r), "I"), when="not orth")
    alpha = trained("r", start=fill(1), when="scale_in")
    beta = trained("r", start=fill(1), when="scale_out")
    A = stored("r", "in", start=PART)
    B = stored("out", "r", start=PART)

    def change(self, *, A: Any, B: Any, q: Any = None, O: Any = None, alpha: Any = None, beta: Any = None) -> Any:
        R = self.turn(q) if O is None else O
        R = R if alpha is None else R * alpha
        R = R if beta is None else R * beta[:, None]
        return lowrank(B @ (R - xp.eye(self.r, dtype=R.dtype)), A)

    def turn(self, q: Any) -> Any:
        """O of q."""
        Q = skew(q[None])[0]
        if self.cayley == "exact":
            return cayley(Q)
        if self.eps is not None:
            Q = Q * (self.eps / ops.maximum(ops.norm(Q) + 1e-12, xp.full((), self.eps, Q.dtype)))
        return cayley(Q, self.terms)
