"""LoRA+: Efficient Low Rank Adaptation of Large Models. Hayou, Ghosh & Yu 2024, https://arxiv.org/abs/2402.12354

    W' = W + s B A,    s = α/r, as LoRA
    η_A = η,   η_B = λ η                                                      (paper, §4: two learning rates, λ ≫ 1)

    A  (r, in)    trained   as LoRA, learning rate η
    B  (out, r)   trained   0, hence W' = W before training; learning rate λ η
    c  (out)      trained   0, learning rate λ η; only with lora_bias, on linears

Size     r (in + out) + lora_bias out numbers per adapted matrix.
Merges   exactly: W' is an ordinary weight.
Dropout  as LoRA.
Differs  λ = 16 is what the paper recommends (§5). HF peft also gives every trained vector λ η, as c here, decays no
         weight by default, and trains both factors of an embedding at 10⁻⁶ unless told otherwise; here an embedding has
         η and λ η.

>>> LoRAPlus(ratio=4.).lr("A"), LoRAPlus(ratio=4.).lr("B")
(1.0, 4.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minipeft.methods.lowrank.lora import LoRA
from minipeft.settings import positive


@dataclass(frozen=True)
class LoRAPlus(LoRA):
    """LoRA whose B learns faster than its A."""

    ratio: float = positive(16.0)  # λ
    name: ClassVar[str] = "lora_plus"
    usual_lr: ClassVar[float] = 3e-3

    def lr(self, name: str) -> float:
        return 1.0 if name == "A" else self.ratio
