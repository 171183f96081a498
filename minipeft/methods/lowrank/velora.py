"""VeLoRA: Memory Efficient Training using Rank-1 Sub-Token Projections. Miles et al. 2024, https://arxiv.org/abs/2405.17991

    W' = W + s B A,    s = α/r as LoRA
    ∂A = s (g B)ᵀ x̂,    x̂ = c (⟨x_1, v⟩ v, …, ⟨x_G, v⟩ v)                     training only (paper, eqs. 1 to 3)

x is cut into G sub-tokens, the last filled up with zeros, and only their products with v need be kept for the backward pass.
v has the length 1: the mean sub-token of the batch, of the first batch for init="once", or drawn. All other gradients are exact.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A, before it is cut.
Differs  The paper keeps the v of the first batch: init="once"; HF peft takes a new one in every pass, as here, unless told otherwise,
         and takes another first one after a file is read; we keep the file's.

>>> kept(np.array([[3., 1., 2.]]), np.array([0.6, 0.8]), 2).round(2)  # 2.6 v, and 1.2 v
array([[1.56, 2.08, 0.72]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import Bad, Here, choice, count, either, found, positive, size, stored
from minipeft.engine import ops, stop_gradient
from minipeft.engine.backend import xp
from minipeft.engine.tensor import value
from minipeft.method import Base
from minipeft.methods.lowrank.lora import LoRA


def cut(x: Any, G: int) -> Any:
    """Vectors (…, in) in G sub-tokens each, (n, G, d)."""
    rows, short = x.reshape(-1, x.shape[-1]), -x.shape[-1] % G
    return xp.concatenate([rows, xp.zeros((len(rows), short), x.dtype)], axis=1).reshape(len(rows), G, -1)


def average(x: Any, G: int) -> Any:
    """The mean sub-token with the length 1; equal numbers where it is 0."""
    m = cut(x, G).mean(axis=(0, 1))
    n = xp.sqrt((m * m).sum())
    return xp.where(n > 0, m / xp.where(n > 0, n, 1), xp.full_like(m, m.size**-0.5))


def kept(x: Any, v: Any, G: int) -> Any:
    """What the products with v tell of x."""
    return ((cut(x, G) @ v)[:, :, None] * v).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def first(method: Any, facts: Any) -> Any:
    if not (inputs := facts.site.inputs):
        raise Bad(f"{method.name}: expected linears that saw inputs, found {facts['site']}, which saw none")
    m = np.pad(inputs[0].mean(axis=0), (0, -facts["in"] % method.groups)).reshape(method.groups, -1).mean(axis=0)
    return m / np.linalg.norm(m)


def drawn(method: Any, facts: Any) -> Any:
    m = facts.rng.standard_normal(facts["d"])
    return m / np.linalg.norm(m)


FIRST = found(first, "the first batch's mean sub-token, of length 1", needs=("inputs",))


@dataclass(frozen=True)
class VeLoRA(LoRA):
    """LoRA that keeps a little of A's inputs for its gradient."""

    name = "velora"
    takes = "linears"
    groups: int = count(64, small=4)  # G
    factor: float = positive(1.0)  # c
    init: str = choice("batch", "once", "random")

    d = size("(in + groups - 1) / groups")
    v = stored(
        "d", start=either("init == 'once'", FIRST, either("init == 'random'", found(drawn, "N(0, 1), of length 1")))
    )

    def change(self, *, A: Any, B: Any, v: Any, c: Any = None) -> Any:
        return super().change(A=A, B=B, c=c)

    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, v: Any, c: Any = None) -> Any:
        x, y = here.dropout(x, self.dropout), base(x)
        v = average(value(x), self.groups) if self.init == "batch" else v
        low = ops.linear(self.factor * kept(value(x), v, self.groups), A)
        h = ops.linear(x, stop_gradient(A)) + (low - stop_gradient(low))
        y = y + self.scale * ops.linear(h, B)
        return y if c is None else y + self.scale * c
