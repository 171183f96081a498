"""OSF: Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning. Nayak et al. 2025, https://arxiv.org/abs/2504.07097

    W = U_h Σ_h V_h + U_0 diag(S_0) V_0          singular triples: the k largest, frozen, and the rest
    W' = W − U_0 diag(S_0) V_0 + U diag(S) V                                  (paper, §3: only the rest is trained)
    ∂U ← (I − U_h U_hᵀ) ∂U,   ∂V ← ∂V (I − V_hᵀ V_h)                           (gradients leave the frozen subspace alone)

    U   (out, l)  trained   U_0
    S   (l)       trained   S_0
    V   (l, in)   trained   V_0, hence W' = W before training
    U0  (out, l)  stored    the last l left singular vectors of W
    S0  (l)       stored    the last l singular values
    V0  (l, in)   stored    the last l right singular vectors
    Uh  (out, k)  stored    the first k left ones
    Vh  (k, in)   stored    the first k right ones

With m = min(in, out), l = m − k, and k by `effective_rank`: None m/2, a fraction (a float in (0, 1]) of m, or a number (an
int) of triples; halves are rounded down. 1 and 1.0 differ: one triple, and all of them, which leaves nothing to train.

Size     l (out + in + 1) numbers per adapted matrix: about as many as W has where k = m/2.
Merges   exactly: W' is an ordinary weight.
Differs  The paper sets k layer by layer, from how much a layer changes its input; HF peft takes one for all, as here. Its
         hooks project gradients, as here, not steps: Adam may leave the subspace. Where out ≤ in, it forms U_0 U_0ᵀ ∂U, which
         is the same. It decomposes in float32, we in float64, so that U_0 diag(S_0) V_0 differs by a rounding of float32.

>>> found = OSF(effective_rank=1).init(Site("q.weight", (2, 2), "linear", None, np.diag([4., 1.])), None)
>>> found["S"], abs(found["U"].T), abs(found["Uh"].array.T)
(array([1.]), array([[0., 1.]]), array([[1., 0.]]))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import stop_gradient
from minipeft.engine.bfloat16 import widened
from minipeft.engine.factors import singular
from minipeft.errors import Bad
from minipeft.method import Method, Site, frozen


@dataclass(frozen=True)
class OSF(Method):
    """Full fine-tuning kept away from the largest singular directions."""

    targets: str = "attn.q.weight attn.v.weight attn.qkv.weight"
    effective_rank: int | float | None = None
    takes: ClassVar[str] = "matrices"
    name: ClassVar[str] = "osf"
    usual_lr: ClassVar[float] = 5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        rank = self.effective_rank
        if rank is not None and (rank <= 0 or (isinstance(rank, float) and rank > 1)):
            raise Bad(f"{self.name}: effective_rank must be a positive int, a float in (0, 1] or None, found {rank!r}")

    def sizes(self, site: Site) -> dict[str, int]:
        m, rank = min(site.shape), self.effective_rank
        k = m // 2 if rank is None else int(m * rank) if isinstance(rank, float) else min(rank, m)
        return dict(k=k, l=m - k)

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        k = self.sizes(site)["k"]
        if k < 1:
            raise Bad(
                f"{self.name}: effective_rank {self.effective_rank!r} keeps none of {min(site.shape)} directions of "
                f"{site.name}"
            )
        U, S, V = singular(f"{self.name}: {site.name}", widened(site.W))
        low = dict(U=U[:, k:], S=S[k:], V=V[k:])
        return low | {f"{n}0": frozen(a) for n, a in low.items()} | dict(Uh=frozen(U[:, :k]), Vh=frozen(V[:k]))

    def weight(self, W: Any, *, U: Any, S: Any, V: Any, U0: Any, S0: Any, V0: Any, Uh: Any, Vh: Any) -> Any:
        # what is subtracted is zero, but its gradient is the part of ∂U and ∂V that lies in the frozen subspace
        U = U - Uh @ (Uh.T @ (U - stop_gradient(U)))
        V = V - ((V - stop_gradient(V)) @ Vh.T) @ Vh
        return W + ((U * S) @ V - (U0 * S0) @ V0)
