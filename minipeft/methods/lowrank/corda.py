"""CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware Parameter-Efficient Fine-tuning. Yang et al. 2024, https://arxiv.org/abs/2406.05223

    C  = mean of XᵀX over some batches, X their inputs of W, token by token;   C ← C + 0.01 (tr C/in) 1
    W C = U Σ Vᵀ,   hence   W = U Σ V̂ᵀ   with   V̂ᵀ = Vᵀ C⁻¹ = Σ⁻¹ Uᵀ W          (paper, §3.2)
    A0 = √(Σ_I/s) V̂_Iᵀ,   B0 = U_I √(Σ_I/s)       I the first r with mode="ipm", the last r with "kpm" (§3.3)
    W' = (W − s B0 A0) + s B A,   s as LoRA

"ipm", instruction-previewed, trains what matters most to the inputs; "kpm", knowledge-preserving, what matters least.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only, not on that of A0.
Differs  inputs="scaled" divides each batch by the size of its largest entry, as the authors' code and HF peft do, whose batches
         have one text; "plain" is the paper's. They invert C in float32, and double the 0.01 until that succeeds; here nothing is
         inverted, C is in float64. They subtract from the base, which HF peft repeats after the same measurements alone; here A0 and
         B0 are stored. Padding is left out.

>>> from minipeft.drawing import Facts
>>> X, W = np.diag([1., 3.]), np.diag([4., 1.])                                   # W C is about diag(4, 9)
>>> site = Site("q.weight", (2, 2), "linear", None, W, inputs=[X])
>>> found = oriented(CorDA(r=1, alpha=1.), Facts(CorDA(r=1), site))
>>> (found["B"] @ found["A"]).round(9) + 0
array([[0., 0.],
       [0., 1.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import Bad, choice, found, lowrank, positive, requires, same, steady, stored, trained
from minipeft.engine.factors import finite, singular
from minipeft.methods.lowrank.lora import LoRA


def oriented(method: Any, facts: Any) -> dict[str, Any]:
    """A0 and B0 from the inputs."""
    what = f"{method.name}: the inputs of {facts['site']}"
    batches = [finite(what, X) for X in facts.site.inputs or () if X.any()]
    if not batches:
        raise Bad(f"{what}: expected some that are not 0, found none")
    sizes = [abs(X.max()) if method.inputs == "scaled" else 1.0 for X in batches]
    C = sum((X.T @ X / size**2 for X, size in zip(batches, sizes, strict=True))) / len(batches)
    C = C + 0.01 * np.trace(C) / len(C) * np.eye(len(C))
    U, S, _ = singular(f"{method.name}: {facts['site']}", facts.W @ C)
    I = slice(method.r) if method.mode == "ipm" else slice(len(S) - method.r, None)
    U, S, s = U[:, I], S[I], method.scale
    return dict(A=((U.T @ facts.W).T / np.sqrt(s * np.where(S > 0, S, 1))).T, B=U * np.sqrt(S / s))


ORIENTED = found(oriented, "√(Σ_I/s) V̂_Iᵀ, U_I √(Σ_I/s)", needs=("inputs",))


@dataclass(frozen=True)
class CorDA(LoRA):
    """LoRA on the part of W that matters most, or least, to given inputs."""

    name = "corda"
    takes = "linears"
    alpha: float = positive(8.0, tried=6.0)
    mode: str = choice("ipm", "kpm", varied=False)
    inputs: str = choice("scaled", "plain", reading=True)

    drawn = requires("not lora_bias and start == 'uniform'", "lora_bias and start go with factors that are drawn")
    rank = requires("r <= min(in, out)", "r must be at most {min(in, out)}, found {r}")
    A = trained("r", "in", start=ORIENTED)
    B = trained("out", "r", start=ORIENTED)
    A0 = stored("r", "in", start=same("A"))
    B0 = stored("out", "r", start=same("B"))

    def change(self, *, A: Any, B: Any, A0: Any, B0: Any) -> Any:
        return self.scale * (lowrank(B, A) - steady(lowrank(B0, A0)))
