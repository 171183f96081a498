"""AdapterFusion: Non-Destructive Task Composition for Transfer Learning. Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00247

    z_k = Wu_k f(Wd_k g + bd_k) + bu_k        k = 1 … K trained adapters on one input, see Pfeiffer
    s   = softmax over k of (Q h + q)·(Kz z_k + kz)                           (paper, eq. 4)
    a'  = a + Σ_k s_k Vf z_k
    loss += γ Σ over sites of ‖I − Vf‖²_F

where a is the output of the feed-forward and g the residual sum that the adapters read; h = g, or a with query="output".

    Q    (d, d)  trained   N(0, 0.02²)
    q    (d)     trained   0
    Kz   (d, d)  trained   N(0, 0.02²)
    kz   (d)     trained   0
    Vf   (d, d)  trained   1 on the diagonal, 1e-6 off it
    Wd0  (m0, d)  stored   those of the first adapter
    bd0  (m0)     stored   as that adapter's
    Wu0  (d, m0)  stored   as that adapter's
    bu0  (d)      stored   as that adapter's
    Wd1  (m1, d)  stored   as that adapter's; only with two adapters or more, and so on
    bd1  (m1)     stored   as that adapter's; only with two adapters or more, and so on
    Wu1  (d, m1)  stored   as that adapter's; only with two adapters or more, and so on
    bu1  (d)      stored   as that adapter's; only with two adapters or more, and so on

Size     3 d² + 2 d numbers per site, one site a layer.
Merges   no: the weights s depend on the token.
Differs  The paper's h is the output of the feed-forward, and it has no biases; AdapterHub, followed here, reads what
         the adapters read, with biases. It regularises Vf with γ = 0.01, the paper with none. Adapters are given trained,
         see `from_adapters`; others are drawn as fresh ones.

>>> z = np.array([[[2., 0.], [0., 2.]]])                                      # one token, two adapters
>>> eye, nil = np.eye(2), np.zeros(2)
>>> AdapterFusion().mix(np.array([[0., 0.]]), z, Q=eye, q=nil, Kz=eye, kz=nil, Vf=3 * eye)
array([[3., 3.]])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.errors import Bad
from minipeft.method import Here, Method, Site, frozen
from minipeft.methods.bottleneck.pfeiffer import Pfeiffer
from minipeft.settings import at_least, choice

PARTS = ("Wd", "bd", "Wu", "bu")


@dataclass(frozen=True)
class AdapterFusion(Method):
    """Attention over trained adapters."""

    targets: str = Pfeiffer.targets
    adapters: tuple[Pfeiffer, ...] = (Pfeiffer(), Pfeiffer())
    gamma: float = at_least(0, 0.01)
    query: str = choice("input", "output", reading=True)
    takes: ClassVar[str] = "vectors"
    identity: ClassVar[bool] = False
    parts: ClassVar[str] = "pfeiffer"
    _trained: ClassVar[Mapping[str, dict[str, Any]]] = {}  # {site: {"Wd0": …}}, set by from_adapters

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adapters or any(type(a) is not Pfeiffer for a in self.adapters):
            raise Bad(f"{self.name}: adapters must be one or more Pfeiffer, found {self.adapters}")

    @classmethod
    def from_adapters(cls, adapters: Sequence[Any], **fields: Any) -> AdapterFusion:
        """A method over these trained Pfeiffer adapters (`minipeft.run.Adapter`), which must have the same sites.

        Raises `Bad` for adapters of another method or at other sites.
        """
        trained: dict[str, dict[str, Any]] = {}
        for k, adapter in enumerate(adapters):
            if type(adapter.method) is not Pfeiffer or set(adapter.at) != set(adapters[0].at):
                raise Bad(
                    f"{cls.name}: adapter {adapter.name!r} must be Pfeiffer, at the same sites as {adapters[0].name!r}"
                )
            for site, arrays in adapter.grouped().items():
                trained.setdefault(site, {}).update({f"{name}{k}": a for name, a in arrays.items()})
        made = cls(**{"targets": " ".join(trained), "adapters": tuple(a.method for a in adapters), **fields})
        object.__setattr__(made, "_trained", trained)
        return made

    def sizes(self, site: Site) -> dict[str, int]:
        return {f"m{k}": a.sizes(site)["m"] for k, a in enumerate(self.adapters)}

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        (d,) = site.shape
        given = self._trained.get(site.name)
        parts = given or {f"{n}{k}": v for k, a in enumerate(self.adapters) for n, v in a.init(site, rng).items()}
        Vf = np.where(np.eye(d, dtype=bool), 1.0, 1e-6)
        Q, Kz = 0.02 * rng.standard_normal((2, d, d))
        return dict(Q=Q, q=np.zeros(d), Kz=Kz, kz=np.zeros(d), Vf=Vf) | {n: frozen(v) for n, v in parts.items()}

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
