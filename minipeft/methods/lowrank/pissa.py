"""PiSSA: Principal Singular Values and Singular Vectors Adaptation. Meng et al. 2024, https://arxiv.org/abs/2404.02948

    W  = U Σ Vᵀ,   A = √(Σ_r/s) V_rᵀ,   B = U_r √(Σ_r/s)                       (paper, eqs. 2 and 3; s = α/r as LoRA)
    W' = (W − s B0 A0) + s B A                                                (eq. 5: the residual is frozen)
    W  = Q R,      A = R_r,           B = Q_r                                 with factors="qr": OLoRA
    U Σ Vᵀ ≈ W     from r random directions, `niter` times refined            with factors="fast"

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only, not on that of A0.
Differs  The authors and HF peft write the residual over the base; here the base stays and A0, B0 stand beside it, so that
         switching the adapter off gives W. They decompose in float32, we in float64; signs, which a decomposition leaves
         open, cancel in B A. An embedding starts as in LoRA and loses nothing, as in HF peft. Where r exceeds min(in, out)
         HF peft takes fewer; we refuse. OLoRA is Büyükakyüz 2024, https://arxiv.org/abs/2406.01775; its factors know nothing
         of s; HF peft decomposes GPT-2's weights transposed. "fast" is HF peft's pissa_niter_N; its files lack A0 and B0.

>>> one, W = np.array([[1., 0.]]), np.diag([4., 1.])                      # W's first direction: A0 = 2 · one, B0 = A0ᵀ
>>> PiSSA(r=1, alpha=1).change(A=4 * one, B=2 * one.T, A0=2 * one, B0=2 * one.T).onto(W)
array([[8., 0.],
       [0., 1.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    FAST_PART, QR_PART, SVD_PART, at_least, by, choice, either, lowrank, positive, requires, same, steady, stored, trained,
)  # fmt: skip
from minipeft.methods.lowrank.lora import LoRA

PART = by("factors", SVD_PART, qr=QR_PART, fast=FAST_PART)


@dataclass(frozen=True)
class PiSSA(LoRA):
    """LoRA on the principal part of W."""

    name = "pissa"
    alpha: float = positive(8.0, tried=6.0)
    factors: str = choice("svd", "qr", "fast", varied=False)
    niter: int = at_least(0, 16, 1000)

    drawn = requires("not lora_bias and start == 'uniform'", "lora_bias and start go with factors that are drawn")
    rank = requires("r <= min(in, out)", "r must be at most {min(in, out)}, found {r}", when="not embedding")
    A = trained("r", "in", start=either("embedding", LoRA.A.start, PART))
    B = trained("out", "r", start=either("embedding", LoRA.B.start, PART))
    A0 = stored("r", "in", start=same("A"))
    B0 = stored("out", "r", start=same("B"))

    def change(self, *, A: Any, B: Any, A0: Any, B0: Any) -> Any:
        return self.scale * (lowrank(B, A) - steady(lowrank(B0, A0)))
