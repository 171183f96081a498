"""LoRA+: Efficient Low Rank Adaptation of Large Models. Hayou, Ghosh & Yu 2024, https://arxiv.org/abs/2402.12354

    W' = W + s B A,    s = α/r, as LoRA
    η_A = η,   η_B = λ η                                                      (paper, §4: two learning rates, λ ≫ 1)

Merges   exactly: W' is an ordinary weight.
Dropout  as LoRA.
Differs  λ = 16 is what the paper recommends (§5). HF peft also gives every trained vector λ η, as c here, decays no
         weight by default, and trains both factors of an embedding at 10⁻⁶ unless told otherwise; here an embedding has
         η and λ η.

>>> from minipeft.arrays import rate
>>> rate(LoRAPlus(ratio=4.), "A"), rate(LoRAPlus(ratio=4.), "B")
(1.0, 4.0)
"""

from dataclasses import dataclass

from minipeft.declare import positive, trained
from minipeft.methods.lowrank.lora import LoRA


@dataclass(frozen=True)
class LoRAPlus(LoRA):
    """LoRA whose B learns faster than its A."""

    name = "lora_plus"
    ratio: float = positive(16.0)  # λ

    B = trained("out", "r", start=LoRA.B.start, rate="ratio")
    c = trained("out", when="lora_bias and not embedding", rate="ratio")
