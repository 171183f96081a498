"""PiSSA: Principal Singular Values and Singular Vectors Adaptation. Meng et al. 2024, https://arxiv.org/abs/2404.02948

    W  = U Σ Vᵀ,   A = √(Σ_r/s) V_rᵀ,   B = U_r √(Σ_r/s)                       (paper, eqs. 2 and 3; s = α/r as LoRA)
    W' = (W − s B0 A0) + s B A                                                (eq. 5: the residual is frozen)
    W  = Q R,      A = R_r,           B = Q_r                                 with factors="qr": OLoRA

    A   (r, in)    trained   A0
    B   (out, r)   trained   B0, hence W' = W before training
    A0  (r, in)    stored    √(Σ_r/s) V_rᵀ, the first r singular triples; the first r rows of R
    B0  (out, r)   stored    U_r √(Σ_r/s); the first r columns of Q

Size     r (in + out) numbers per adapted matrix.
Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only, not on that of A0.
Differs  The authors and HF peft write the residual over the base; here the base stays and A0, B0 stand beside it, so
         that switching the adapter off gives W. They decompose in float32, we in float64; signs, which a decomposition
         leaves open, cancel in B A. An embedding starts as in LoRA and loses nothing, as in HF peft. Where r exceeds
         min(in, out) HF peft takes fewer; we refuse. OLoRA is Büyükakyüz 2024, https://arxiv.org/abs/2406.01775; its
         factors know nothing of s, and HF peft decomposes GPT-2's weights transposed, which we do not.

>>> W = np.diag([4., 1.])
>>> found = PiSSA(r=1, alpha=1).init(Site("q.weight", (2, 2), "linear", None, W), None)
>>> abs(found["B"] @ found["A"])
array([[4., 0.],
       [0., 0.]])
>>> own = dict(A=2 * found["A"], B=found["B"], A0=found["A0"].array, B0=found["B0"].array)
>>> PiSSA(r=1, alpha=1).weight(W, **own)
array([[8., 0.],
       [0., 1.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.errors import Bad
from minipeft.method import Base, Here, Site, frozen
from minipeft.methods.lowrank.lora import LoRA
from minipeft.settings import choice, positive


@dataclass(frozen=True)
class PiSSA(LoRA):
    """LoRA on the principal part of W."""

    alpha: float = positive(8.0)
    factors: str = choice("svd", "qr", varied=False)
    name: ClassVar[str] = "pissa"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_bias:
            raise Bad(f"{self.name}: lora_bias goes with factors that start at 0; expected False")

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        plain = site.kind == "embedding" or len(site.shape) != 2  # where `LoRA.init` refuses what is no matrix
        arrays = super().init(site, rng) if plain else self.first(site, self.factors)
        return arrays | dict(A0=frozen(arrays["A"]), B0=frozen(arrays["B"]))

    def weight(self, W: Any, *, A: Any, B: Any, A0: Any, B0: Any) -> Any:
        return W + self.scale * (B @ A - B0 @ A0)

    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, A0: Any, B0: Any) -> Any:
        """x W'ᵀ + b by the factors alone."""
        if base.table:
            return base(x) + self.scale * (ops.take(B, ids=x) @ A - ops.take(B0, ids=x) @ A0)
        residual = ops.add_lowrank(base(x), x, A0, B0, s=-self.scale)
        return ops.add_lowrank(residual, here.dropout(x, self.dropout), A, B, s=self.scale)
