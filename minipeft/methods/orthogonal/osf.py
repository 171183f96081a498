"""OSF: Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning. Nayak et al. 2025, https://arxiv.org/abs/2504.07097

    W = U_h Σ_h V_h + U_0 diag(S_0) V_0          singular triples: the k largest, frozen, and the rest
    W' = W − U_0 diag(S_0) V_0 + U diag(S) V                                  (paper, §3: only the rest is trained)
    ∂U ← (I − U_h U_hᵀ) ∂U,   ∂V ← ∂V (I − V_hᵀ V_h)                           (gradients leave the frozen subspace alone)

With m = min(in, out), l = m − k, and k by `effective_rank`: None m/2, a fraction (a float in (0, 1]) of m, or a number (an
int) of triples; halves are rounded down. 1 and 1.0 differ: one triple, and all of them, which leaves nothing to train.

Merges   exactly: W' is an ordinary weight.
Differs  The paper sets k layer by layer, from how much a layer changes its input; HF peft takes one for all, as here. Its
         hooks project gradients, as here, not steps: Adam may leave the subspace. Where out ≤ in, it forms U_0 U_0ᵀ ∂U, which
         is the same. It decomposes in float32, we in float64, so that U_0 diag(S_0) V_0 differs by a rounding of float32.

>>> from minipeft.drawing import Facts
>>> site = Site("q.weight", (2, 2), "linear", None, np.diag([4., 1.]))
>>> found = triples(OSF(), Facts(OSF(effective_rank=1), site))
>>> found["S"], abs(found["U"].T), abs(found["Uh"].T)
(array([1.]), array([[0., 1.]]), array([[1., 0.]]))
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, fact, found, requires, same, size, stored, such_that, trained
from minipeft.engine import stop_gradient
from minipeft.engine.factors import singular


def kept(method: Any, site: Any) -> int:
    """k: how many singular triples are frozen."""
    m, rank = min(site.shape), method.effective_rank
    return m // 2 if rank is None else int(m * rank) if isinstance(rank, float) else min(rank, m)


def triples(method: Any, facts: Any) -> dict[str, Any]:
    """The frozen triples and the others."""
    k = facts["k"]
    U, S, V = singular(f"{method.name}: {facts['site']}", facts.W)
    return dict(U=U[:, k:], S=S[k:], V=V[k:], Uh=U[:, :k], Vh=V[:k])


FIRST, LAST = found(triples, "the first k of W"), found(triples, "the last l of W")


@dataclass(frozen=True)
class OSF(Method):
    """Full fine-tuning kept away from the largest singular directions."""

    name = "osf"
    targets: str = QUERY_VALUE
    takes = "matrices"
    effective_rank: int | float | None = such_that(
        lambda k: k > 0 and (isinstance(k, int) or k <= 1),
        "be a positive int, a float in (0, 1] or None",
        None,
        tried=lambda arch: 5 if arch.d == 12 else 3,
    )

    k = fact(kept)
    l = size("min(out, in) - k")
    some = requires("k >= 1", "effective_rank {effective_rank} keeps none of {min(out, in)} directions")
    U = trained("out", "l", start=LAST)
    S = trained("l", start=LAST)
    V = trained("l", "in", start=LAST)
    U0 = stored("out", "l", start=same("U"))
    S0 = stored("l", start=same("S"))
    V0 = stored("l", "in", start=same("V"))
    Uh = stored("out", "k", start=FIRST)
    Vh = stored("k", "in", start=FIRST)

    def weight(self, W: Any, *, U: Any, S: Any, V: Any, U0: Any, S0: Any, V0: Any, Uh: Any, Vh: Any) -> Any:
        # what is subtracted is zero, but its gradient is the part of ∂U and ∂V that lies in the frozen subspace
        U = U - Uh @ (Uh.T @ (U - stop_gradient(U)))
        V = V - ((V - stop_gradient(V)) @ Vh.T) @ Vh
        return W + ((U * S) @ V - (U0 * S0) @ V0)
