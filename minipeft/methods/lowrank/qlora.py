"""QLoRA: Efficient Finetuning of Quantized LLMs. Dettmers et al. 2023, https://arxiv.org/abs/2305.14314

    Ŵ  = deq(quant(W))      held in few bits, made a matrix again at every use   (paper, eq. 5; minipeft.quantize)
    W' = Ŵ + s B A,   s = α/r, as LoRA

Merges   exactly: to Ŵ + s B A in full precision. `requantized` gives what those bits keep of it.
Differs  The base model, not the adapter, holds the codes: an adapter trained here is an ordinary LoRA. Constants are quantised too, as
         in the paper; bitsandbytes leaves that off unless asked, and merges back into four bits, which does not give W'. Only
         targeted linears are held so, by default all but the head, as in the paper (§4); a tied head is not. FP4 and INT8 are
         bitsandbytes' too; with INT8 it rounds what enters a linear as well.

>>> from minipeft.drawing import Facts
>>> site = Site("q.weight", (2, 2), "linear", None, np.array([[0.5, 1.0], [-1.0, 0.1]]))
>>> in_few_bits(QLoRA(double_quant=False), Facts(QLoRA(), site)).dequantize().round(2)
array([[ 0.44,  1.  ],
       [-1.  ,  0.08]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import at_least, choice, held
from minipeft.methods.lowrank.lora import LoRA
from minipeft.quantize import quantize


def in_few_bits(method: Any, facts: Any) -> Any:
    """The weight of a linear, quantised."""
    return method.quantized(facts.W) if facts["linear"] else None


@dataclass(frozen=True)
class QLoRA(LoRA):
    """LoRA over a base held in four bits or eight."""

    name = "qlora"
    targets: str = "all-linear"
    takes = "linears"
    code: str = choice("nf4", "fp4", "int8")
    block: int = at_least(1, 64, tried=64)  # of values in four bits
    double_quant: bool = True  # of their constants
    W = held(in_few_bits)

    def quantized(self, W: Any) -> Any:
        """W as it is held."""
        return quantize(W, self.block, self.double_quant, self.code)

    def requantized(self, W: Any, **arrays: Any) -> Any:
        """W' held so again, W being the base as dequantised: the merge of bitsandbytes, W' only roughly."""
        return self.quantized(self.change(**arrays).onto(W))
