"""AdapterFusion: Non-Destructive Task Composition for Transfer Learning. Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00247

    z_k = Wu_k f(Wd_k g + bd_k) + bu_k        k = 1 … K trained adapters on one input, see Pfeiffer
    s   = softmax over k of (Q h + q)·(Kz z_k + kz)                           (paper, eq. 4)
    a'  = a + Σ_k s_k Vf z_k
    loss += γ Σ over sites of ‖I − Vf‖²_F

where a is the output of the feed-forward and g the residual sum that the adapters read; h = g, or a with query="output".

Merges   no: the weights s depend on the token.
Differs  The paper's h is the output of the feed-forward, and it has no biases; AdapterHub, followed here, reads what
         the adapters read, with biases. It regularises Vf with γ = 0.01, the paper with none. Adapters are given trained,
         see `from_adapters`; others are drawn as fresh ones.

>>> z = np.array([[[2., 0.], [0., 2.]]])                                      # one token, two adapters
>>> eye, nil = np.eye(2), np.zeros(2)
>>> AdapterFusion().mix(np.array([[0., 0.]]), z, Q=eye, q=nil, Kz=eye, kz=nil, Vf=3 * eye)
array([[3., 3.]])
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import Here, OverAdapters, at_least, choice, found, normal, of_parts, parts, trained
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.methods.bottleneck.pfeiffer import Pfeiffer

PARTS = ("Wd", "bd", "Wu", "bu")


def nearly_one(method: Any, facts: Any) -> Any:
    """1 on the diagonal, 1e-6 off it."""
    return np.where(np.eye(facts["d"], dtype=bool), 1.0, 1e-6)


@dataclass(frozen=True)
class AdapterFusion(OverAdapters):
    """Attention over trained adapters."""

    identity = False
    targets: str = Pfeiffer.targets
    takes = "vectors"
    adapters: tuple[Pfeiffer, ...] = parts(Pfeiffer, (Pfeiffer(), Pfeiffer()))
    gamma: float = at_least(0, 0.01)
    query: str = choice("input", "output", reading=True, varied=False)

    Q = trained("d", "d", start=normal(0.02), late=True)
    q = trained("d")
    Kz = trained("d", "d", start=normal(0.02), late=True)
    kz = trained("d")
    Vf = trained("d", "d", start=found(nearly_one, "1 on the diagonal, 1e-6 off it"))
    own = of_parts("adapters", same_sites=True)

    def mix(self, h: Any, z: Any, *, Q: Any, q: Any, Kz: Any, kz: Any, Vf: Any) -> Any:
        """Σ_k s_k Vf z_k: h (…, d), z (…, K, d) -> (…, d)."""
        ask = ops.linear(h, Q, q)
        s = ops.softmax(
            ops.sum(ops.reshape(ask, shape=(*ask.shape[:-1], 1, ask.shape[-1])) * ops.linear(z, Kz, kz), axis=-1)
        )
        return ops.linear(ops.sum(ops.reshape(s, shape=(*s.shape, 1)) * z, axis=-2), Vf)  # Vf is linear: once is enough

    def apply(self, a: Any, here: Here, *, Q: Any, q: Any, Kz: Any, kz: Any, Vf: Any, **parts: Any) -> Any:
        g = here.combine(a)
        z = [m.bottleneck(g, **{n: parts[f"{n}{k}"] for n in PARTS}) for k, m in enumerate(self.adapters)]
        h = g if self.query == "input" else a
        return a + self.mix(h, ops.stack(*z, axis=-2), Q=Q, q=q, Kz=Kz, kz=kz, Vf=Vf)

    def penalty(self, arrays: Mapping[str, dict[str, Any]]) -> Any:
        """γ Σ ‖I − Vf‖²_F."""
        total: Any = 0.0
        for own in arrays.values():
            if "Vf" in own and self.gamma:
                off = own["Vf"] - xp.eye(own["Vf"].shape[0], dtype=own["Vf"].dtype)
                total = total + ops.sum(off * off)
        return self.gamma * total if self.gamma else None
