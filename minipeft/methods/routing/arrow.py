"""Arrow: Towards Modular LLMs by Building and Reusing a Library of LoRAs. Ostapenko et al. 2024, https://arxiv.org/abs/2405.11157

    y = x Wᵀ + b + Σ_k g_k s_k B_k A_k x
    g = softmax(|x · v_k| / temperature)    over the top_k largest            (paper, §3)
    v_k = the right singular vector of B_k A_k with the largest singular value

An expert is asked for tokens along the input that moves it most. The library is trained before, and v is made of it once.
`from_adapters(…, general=…)` first takes general knowledge out of it (GenKnowSub, https://aclanthology.org/2025.acl-short.54):

    A_k ← A_k − mean A_general,    B_k ← B_k − mean B_general

Merges   no: the gates depend on the token.
Dropout  acts on what the experts add.
Differs  HF peft makes v by 15 steps of the power method in float32, from a random start: v="power" with its rng_seed. That is
         off by 10⁻⁶, and by as much as you like where two singular values are close; without a seed every model has its own.
         It subtracts from the adapters themselves: saved then, they lose it again when read. Of equal gates we keep the first.

>>> Arrow(top_k=1)._gates(np.array([[1., -3.]]), np.eye(2)).round(2)
array([[0., 1.]])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    Bad, Here, OverAdapters, at_least, choice, count, either, found, free, of_parts, parts, positive, size, stored, uniform,
    within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.tensor import value
from minipeft.method import Base
from minipeft.methods.lowrank.lora import LoRA
from minipeft.torch_random import TorchGenerator


def direction(A: Any, B: Any) -> Any:
    """The dominant right singular vector of B A."""
    Q, R = np.linalg.qr(A.T.astype(np.float64))
    return Q @ np.linalg.svd(B @ R.T, full_matrices=False)[2][0]


def power(A: Any, B: Any, seed: int) -> Any:
    """The same by the power method, as HF peft does it, in the dtype of A."""
    v, tiny = TorchGenerator(seed).normal(A.shape[1], dtype=A.dtype), A.dtype.type(1e-8)
    for i in range(16):
        v = A.T @ (B.T @ B @ (A @ v)) if i else v
        v = v / (np.linalg.norm(v) + tiny)
    return v


def prototypes(method: Any, facts: Any) -> Any:
    """v of every expert, below each other."""
    own = [(facts.drawn[f"A{k}"], facts.drawn[f"B{k}"]) for k in range(len(method.experts))]
    return np.stack([direction(A, B) if method.v == "svd" else power(A, B, method.seed) for A, B in own])


@dataclass(frozen=True)
class Arrow(OverAdapters):
    """Trained LoRA adapters, asked for the tokens that lie along their own directions."""

    targets: str = LoRA.targets
    takes = "linears"
    experts: tuple[LoRA, ...] = parts(
        LoRA, (LoRA(),) * 3, fits=lambda e: not e.lora_bias, says=" without lora_bias",
        small=(LoRA(r=2), LoRA(r=3), LoRA(r=2, alpha=5.0)),
    )  # fmt: skip
    top_k: int = count(3, most="len(experts)", small=2)
    temperature: float = positive(1.0, tried=0.7)
    dropout: float = within("[0, 1)", 0.0)
    v: str = choice("svd", "power", reading=True, varied=False)
    seed: int = at_least(0, 0)
    train_experts: bool = free(False, small=True)
    start: str = choice("zero", "random", small="random")  # B of experts that are not given

    E = size("len(experts)")
    own = of_parts("experts", "train_experts", same_sites=True, B=either("start == 'random'", uniform("r")))
    P = stored("E", "in", start=found(prototypes, "the dominant right singular vector of every B A"))

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with untrained experts, whose B is 0."""
        return self.start == "zero" and not self.given

    @classmethod
    def from_adapters(cls, adapters: Sequence[Any], general: Sequence[Any] = (), **fields: Any) -> Any:
        """A library of these trained adapters, without the mean of the general ones. Raises `Bad` for those that do not fit."""
        made, n = super().from_adapters(adapters, **fields), len(adapters)
        every = super().from_adapters([*adapters, *general], **fields).given
        for site, arrays in made.given.items() if general else ():
            for name in arrays:
                others = [every[site][f"{name[0]}{n + k}"] for k in range(len(general))]
                if any(a.shape != arrays[name].shape for a in others):
                    raise Bad(f"{cls.name}: general adapters must have the rank of those they are taken from")
                arrays[name] = arrays[name] - sum(others) / len(others)
        return made

    def _gates(self, x: Any, P: Any) -> Any:
        """(…, E) how much every expert counts."""
        z = ops.absolute(x @ P.T)
        best = xp.argsort(-value(z), axis=-1, kind="stable")[..., : self.top_k]
        kept = xp.zeros(z.shape, bool)
        xp.put_along_axis(kept, best, xp.ones(best.shape, bool), axis=-1)
        low = xp.full((), float(xp.finfo(z.dtype).min) / 2, z.dtype)
        return ops.softmax(ops.where(z / self.temperature, low, condition=kept))

    def forward(self, x: Any, base: Base, here: Here, *, P: Any, **arrays: Any) -> Any:
        g, added = self._gates(x, P), 0.0
        for k, expert in enumerate(self.experts):
            added = added + expert.scale * ops.linear(
                ops.linear(x * g[..., k : k + 1], arrays[f"A{k}"]), arrays[f"B{k}"]
            )
        return base(x) + here.dropout(added, self.dropout)
