"""X-LoRA: Mixture of Low-Rank Adapter Experts. Buehler & Buehler 2024, https://arxiv.org/abs/2402.07148

    y = x Wᵀ + b + γ Σ_k s_k B_k A_k (g_k x)                        g (K) the gates of x's token
    g = softmax(classifier(h) / temperature)

h is the hidden state after the final norm, from a first pass in which every gate is pass_value; it is a constant to
the gradient. With top_k only the largest k gates stay, not rescaled unless by top_k_softmax. The classifier is one
linear, or with depth > 1 linears of `hidden` units with ReLU in between. With layerwise each matrix has its own gates.

Merges   no: the gates depend on the token.
Differs  Experts are given trained, see `from_adapters`; others have B = 0, and only then the model equals the
         base. HF peft 0.21 does not save all of the classifier, and merging adds up all experts with weight 1. Where
         top_k finds equal gates we keep the first. Generation keeps no keys and values: every pass is a double one.

>>> XLoRA(top_k=1)._pick(np.array([[[0.25, 0.75]]]))
array([[[0.  , 0.75]]])
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    Bad, Here, OverAdapters, Unfit, at_least, choice, count, each, either, found, free, of_parts, parts, size, positive,
    requires, stored, trained, uniform, within,
)  # fmt: skip
from minipeft.engine import ops, stop_gradient
from minipeft.engine.backend import xp
from minipeft.engine.tensor import value
from minipeft.method import Base
from minipeft.methods.lowrank.lora import LoRA

FIRST, LAST = "hidden if n else d_model", "hidden if n + 1 < depth else gates"  # of layer n of the classifier
NUMBER = found(lambda method, facts: np.array([facts.index]), "its number")


@dataclass(frozen=True)
class XLoRA(OverAdapters):
    """Trained LoRA adapters, mixed for every token by a small classifier."""

    name = "x_lora"
    targets: str = LoRA.targets
    takes = "linears and lookups"
    experts: tuple[LoRA, ...] = parts(
        LoRA, (LoRA(), LoRA()), fits=lambda e: not e.lora_bias, says=" without lora_bias", small=(LoRA(r=2), LoRA(r=3))
    )
    layerwise: bool = False
    depth: int = count(1, most=16)
    hidden: int = count(2048, most=1 << 13, tried=6)
    dropout: float = within("[0, 1)", 0.0)  # within the classifier, if depth > 1
    softmax: bool = True
    temperature: float = positive(1.0, tried=0.8)
    top_k: int = at_least(0, 0, most="len(experts)")  # 0: all
    top_k_softmax: bool = False
    pass_value: float = free(0.0)
    gamma: float = free(1.0, tried=1.5)
    train_experts: bool = False
    start: str = choice("zero", "random", small="random")  # B of experts that are not given

    one = requires("not encoder_layers", "expected one stack, whose tokens the gates are for, found two", error=Unfit)
    gates = size("len(experts) (sites if layerwise else 1)")
    classifier = each(
        "depth", V=trained(LAST, FIRST, start=uniform(FIRST)), v=trained(LAST, start=uniform(FIRST)), shared=True
    )
    own = of_parts("experts", "train_experts", B=either("start == 'random'", uniform("r")))
    index = stored("1", start=NUMBER, when="layerwise", below="sites")

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with untrained experts, whose B is 0."""
        return self.start == "zero" and not self.given

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
