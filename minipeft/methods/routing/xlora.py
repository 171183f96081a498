"""X-LoRA: Mixture of Low-Rank Adapter Experts. Buehler & Buehler 2024, https://arxiv.org/abs/2402.07148

    y = x Wᵀ + b + γ Σ_k s_k B_k A_k (g_k x)                        g (K) the gates of x's token
    g = softmax(classifier(h) / temperature)

h is the hidden state after the final norm, from a first pass in which every gate is pass_value; it is a constant to
the gradient. With top_k only the largest k gates stay, not rescaled unless by top_k_softmax. The classifier is one
linear, or with depth > 1 linears of `hidden` units with ReLU in between. With layerwise each matrix has its own gates.

    V0     (K, d)     trained   U(±1/√d); shared. More with depth > 1; with layerwise K rows for each matrix
    v0     (K)        trained   U(±1/√d); shared
    A0     (r0, in)   stored    as the expert's A; trained with train_experts
    B0     (out, r0)  stored    as the expert's B; trained with train_experts
    A1     (r1, in)   stored    as the second's; only with two experts or more, and so on
    B1     (out, r1)  stored    as that expert's; only with two experts or more
    index  (1)        stored    the number of this matrix among the adapted ones; only with layerwise

Size     (d + 1) K numbers in all: the classifier.
Merges   no: the gates depend on the token.
Differs  Experts are given trained, see `from_adapters`; others have B = 0, and only then the model equals the
         base. HF peft 0.21 does not save all of the classifier, and merging adds up all experts with weight 1. Where
         top_k finds equal gates we keep the first. Generation keeps no keys and values: every pass is a double one.

>>> XLoRA(top_k=1)._pick(np.array([[[0.25, 0.75]]]))
array([[[0.  , 0.75]]])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops, stop_gradient
from minipeft.engine.backend import xp
from minipeft.engine.tensor import value
from minipeft.errors import Bad, Unfit
from minipeft.method import Base, Here, Method, Site, frozen
from minipeft.methods.lowrank.lora import LoRA
from minipeft.model.arch import Arch
from minipeft.settings import at_least, choice, count, positive, within


@dataclass(frozen=True)
class XLoRA(Method):
    """Trained LoRA adapters, mixed for every token by a small classifier."""

    targets: str = LoRA.targets
    experts: tuple[LoRA, ...] = (LoRA(), LoRA())
    layerwise: bool = False
    depth: int = count(1, most=16)
    hidden: int = count(2048, most=1 << 13)
    dropout: float = within("[0, 1)", 0.0)  # within the classifier, if depth > 1
    softmax: bool = True
    temperature: float = positive(1.0)
    top_k: int = at_least(0, 0)  # 0: all
    top_k_softmax: bool = False
    pass_value: float = 0.0
    gamma: float = 1.0
    train_experts: bool = False
    start: str = choice("zero", "random")  # B of experts that are not given
    takes: ClassVar[str] = "matrices"
    name: ClassVar[str] = "x_lora"
    caches: ClassVar[bool] = False
    parts: ClassVar[str] = "lora"
    _trained: ClassVar[Mapping[str, dict[str, Any]]] = {}  # {site: {"A0": …}}, set by from_adapters

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.experts or any(type(e) is not LoRA or e.lora_bias for e in self.experts):
            raise Bad(f"{self.name}: experts must be one or more plain LoRA without lora_bias, found {self.experts}")
        if not 0 <= self.top_k <= len(self.experts):
            raise Bad(
                f"{self.name}: top_k must lie in 0 … {len(self.experts)}, the number of experts, found {self.top_k}"
            )

    @classmethod
    def sized(cls, arch: Arch) -> XLoRA:
        return cls(experts=(LoRA(r=2), LoRA(r=3)), start="random")

    @classmethod
    def from_adapters(cls, adapters: Sequence[Any], **fields: Any) -> XLoRA:
        """A method whose experts start as these trained LoRA adapters (`minipeft.run.Adapter`), at all of their sites.

        Raises `Bad` for adapters of another method, or with fields that differ from site to site.
        """
        trained: dict[str, dict[str, Any]] = {}
        for k, adapter in enumerate(adapters):
            if any(method != adapter.method for method in adapter.at.values()):
                raise Bad(
                    f"{cls.name}: adapter {adapter.name!r} is not the same method at all sites, or trains whole modules"
                )
            for site, arrays in adapter.grouped().items():
                trained.setdefault(site, {}).update({f"{name}{k}": a for name, a in arrays.items()})
        made = cls(**{"targets": " ".join(trained), "experts": tuple(a.method for a in adapters), **fields})
        object.__setattr__(made, "_trained", trained)
        return made

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with untrained experts, whose B is 0."""
        return self.start == "zero" and not self._trained

    def sizes(self, site: Site) -> dict[str, int]:
        return dict(K=len(self.experts), d=site.arch.d) | {f"r{k}": e.r for k, e in enumerate(self.experts)}

    def shared(self, sites: list[Site], rng: np.random.Generator) -> dict[str, Any]:
        arch = sites[0].arch
        if arch.encoder_layers:
            raise Unfit(
                f"{self.name}: expected a model of one stack, whose tokens the gates are for; {arch.family} has two"
            )
        widths = [arch.d, *[self.hidden] * (self.depth - 1), len(self.experts) * (len(sites) if self.layerwise else 1)]
        arrays = {}
        for i, (in_, out) in enumerate(pairwise(widths)):
            arrays[f"V{i}"] = rng.uniform(-(in_**-0.5), in_**-0.5, (out, in_))
            arrays[f"v{i}"] = rng.uniform(-(in_**-0.5), in_**-0.5, out)
        return arrays

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        arrays = dict(self._trained.get(site.name, {}))
        for k, expert in enumerate(self.experts if not self._trained else ()):
            arrays |= {f"{name}{k}": a for name, a in expert.init(site, rng).items()}
            if self.start == "random":
                arrays[f"B{k}"] = rng.uniform(-(expert.r**-0.5), expert.r**-0.5, arrays[f"B{k}"].shape)
        return arrays if self.train_experts else {name: frozen(a) for name, a in arrays.items()}

    def init_all(self, sites: list[Site], rng: np.random.Generator) -> dict[str, dict[str, Any]]:
        number = {s.name: dict(index=frozen(np.array([i]))) if self.layerwise else {} for i, s in enumerate(sites)}
        return {s.name: self.init(s, rng) | number[s.name] for s in sites}

    def before(self, here: Here, forward: Callable[[], Any], **shared: Any) -> None:
        """Computes the gates (b, t, K), or (b, t, matrices, K) with layerwise, from a pass without them."""
        here.state["gates"] = None
        z = stop_gradient(forward().hidden)
        for i in range(self.depth):
            z = ops.linear(z, shared[f"V{i}"], shared[f"v{i}"])
            z = here.dropout(ops.relu(z), self.dropout) if i < self.depth - 1 else z
        if self.layerwise:
            z = ops.reshape(z, shape=(*z.shape[:2], -1, len(self.experts)))
        here.state["gates"] = ops.softmax(z / self.temperature) if self.softmax else z

    def _pick(self, g: Any) -> Any:
        """The gates that stay after top_k and top_k_softmax."""
        if self.top_k:
            best = xp.argsort(-value(g), axis=-1, kind="stable")[..., : self.top_k]
            kept = xp.zeros_like(value(g))
            xp.put_along_axis(kept, best, xp.ones(best.shape, kept.dtype), axis=-1)
            g = g * kept
        if self.top_k_softmax:  # over the gates that are not 0
            live, low = value(g) != 0, xp.full((), float(xp.finfo(g.dtype).min) / 2, g.dtype)
            g = ops.softmax(ops.where(g, low, condition=live)) * live
        return g

    def forward(self, x: Any, base: Base, here: Here, *, index: Any = None, **arrays: Any) -> Any:
        """The base's output and every expert's, weighted. Raises `Bad` where x is not one vector for each token."""
        y = base(x)
        g = here.state["gates"]
        if g is None:
            if not self.pass_value:
                return y
            g = xp.full((*y.shape[:2], len(self.experts)), self.pass_value, y.dtype)
        elif index is not None:
            own = ops.getitem(g, index=(slice(None), slice(None), index.astype(int)))  # (b, t, 1, K)
            g = ops.reshape(own, shape=(*g.shape[:2], len(self.experts)))
        if y.ndim != 3 or g.shape[1] != y.shape[1]:
            raise Bad(f"{self.name}: {here.site} must see one vector for each of {g.shape[1]} tokens, found {x.shape}")
        g = self._pick(g)
        for k, expert in enumerate(self.experts):
            if f"A{k}" not in arrays:  # this expert leaves the site alone
                continue
            A, B, s, gate = arrays[f"A{k}"], arrays[f"B{k}"], self.gamma * expert.scale, g[:, :, k : k + 1]
            if base.table:
                y = y + s * ((ops.take(B, ids=x) * gate) @ A)
            else:
                y = ops.add_lowrank(y, here.dropout(x * gate, expert.dropout), A, B, s=s)
        return y
