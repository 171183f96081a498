"""MiCA: MiCA Learns More Knowledge Than LoRA and Full Fine-Tuning. Rüdiger & Raschka 2026, https://arxiv.org/abs/2604.01694

    W  = U Σ Vᵀ,   B = U_−r,   A = 0          the r left singular vectors with the smallest σ, which stay; A is trained
    W' = W + s B A,    s = α/r as LoRA                                        minor component adaptation
    E' = E + s B_emb A_emb                     on an embedding: A_emb = V_−rᵀ, which stays; B_emb = 0 is trained

Merges   exactly: W' is an ordinary weight.
Dropout  as LoRA.
Differs  U and V are those of the reduced decomposition, min(in, out) of each, as in HF peft, which decomposes in float32, we in
         float64. Where σ are equal or 0 the vectors are any of their space. HF peft takes "mica" for the start's name in any
         capitals, and freezes B in small letters alone: files of the others are LoRA's here, too.

>>> from minipeft.drawing import Facts
>>> site = Site("q.weight", (2, 2), "linear", None, np.diag([4., 1.]))
>>> abs(minor(MiCA(r=1), Facts(MiCA(r=1), site))["B"].T)
array([[0., 1.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import found, lowrank, requires, stored, trained
from minipeft.engine.factors import singular
from minipeft.methods.lowrank.lora import LoRA


def minor(method: Any, facts: Any) -> dict[str, Any]:
    """The singular vectors with the smallest singular values."""
    U, _, Vt = singular(f"{method.name}: {facts['site']}", facts.W)
    return dict(B=U[:, -method.r :], A_emb=Vt[-method.r :])


@dataclass(frozen=True)
class MiCA(LoRA):
    """LoRA into the directions that W uses least."""

    name = "mica"

    drawn = requires("not lora_bias and start == 'uniform'", "lora_bias and start go with factors that are drawn")
    rank = requires("r <= min(in, out)", "r must be at most {min(in, out)}, found {r}")
    A = trained("r", "in", when="not embedding")
    B = stored("out", "r", start=found(minor, "U_−r, W = U Σ Vᵀ"), when="not embedding")
    A_emb = stored("r", "d", start=found(minor, "V_−rᵀ, E = U Σ Vᵀ"), when="embedding")
    B_emb = trained("V", "r", when="embedding")

    def change(self, *, A: Any = None, B: Any = None, A_emb: Any = None, B_emb: Any = None) -> Any:
        return self.scale * (lowrank(B, A) if A_emb is None else lowrank(B_emb, A_emb))
