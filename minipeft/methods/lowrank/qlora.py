"""QLoRA: Efficient Finetuning of Quantized LLMs. Dettmers et al. 2023, https://arxiv.org/abs/2305.14314

    Ŵ  = deq(quant(W))      held in four bits, made a matrix again at every use   (paper, eq. 5; minipeft.quantize)
    W' = Ŵ + s B A,   s = α/r, as LoRA

Merges   exactly: to Ŵ + s B A in full precision. `requantized` gives what four bits keep of it.
Dropout  as LoRA.
Differs  The base model, not the adapter, holds the codes: an adapter trained here is an ordinary LoRA. Constants are
         quantised too, as in the paper: double_quant=True; bitsandbytes leaves that off unless asked. bitsandbytes
         merges back into four bits, which does not give W' and cannot be undone. Only targeted linears are held in four
         bits; the targets are all linears but the head, as in the paper (§4). A tied head stays as it is.

>>> from minipeft.drawing import Facts
>>> site = Site("q.weight", (2, 2), "linear", None, np.array([[0.5, 1.0], [-1.0, 0.1]]))
>>> in_four_bits(QLoRA(double_quant=False), Facts(QLoRA(), site)).dequantize().round(2)
array([[ 0.44,  1.  ],
       [-1.  ,  0.08]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import at_least, held
from minipeft.methods.lowrank.lora import LoRA
from minipeft.quantize import NF4, quantize


def in_four_bits(method: Any, facts: Any) -> NF4 | None:
    """The weight of a linear in four bits."""
    return quantize(facts.W, method.block, method.double_quant) if facts["linear"] else None


@dataclass(frozen=True)
class QLoRA(LoRA):
    """LoRA over a base held in four bits."""

    name = "qlora"
    targets: str = "all-linear"
    takes = "linears"
    block: int = at_least(1, 64, tried=64)
    double_quant: bool = True

    W = held(in_four_bits)

    def requantized(self, W: Any, **arrays: Any) -> NF4:
        """W' in four bits again, W being the base as dequantised: the merge of bitsandbytes, W' only roughly."""
        return quantize(self.change(**arrays).onto(W), self.block, self.double_quant)
