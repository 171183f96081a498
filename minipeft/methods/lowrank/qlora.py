"""QLoRA: Efficient Finetuning of Quantized LLMs. Dettmers et al. 2023, https://arxiv.org/abs/2305.14314

    Ŵ  = deq(quant(W))      held in four bits, made a matrix again at every use   (paper, eq. 5; minipeft.quantize)
    W' = Ŵ + s B A,   s = α/r, as LoRA

    A  (r, in)    trained   as LoRA
    B  (out, r)   trained   0, hence W' = Ŵ before training
    c  (out)      trained   0; only with lora_bias

Size     r (in + out) + lora_bias out numbers per adapted matrix.
Merges   exactly: to Ŵ + s B A in full precision. `requantized` gives what four bits keep of it.
Dropout  as LoRA.
Differs  The base model, not the adapter, holds the codes: an adapter trained here is an ordinary LoRA. Constants are
         quantised too, as in the paper: double_quant=True; bitsandbytes leaves that off unless asked. bitsandbytes
         merges back into four bits, which does not give W' and cannot be undone. Only targeted linears are held in four
         bits; the targets are all linears but the head, as in the paper (§4). A tied head stays as it is.

>>> import numpy as np
>>> W = np.array([[0.5, 1.0], [-1.0, 0.1]])
>>> QLoRA(double_quant=False).base(Site("q.weight", (2, 2), "linear", None, W)).dequantize().round(2)
array([[ 0.44,  1.  ],
       [-1.  ,  0.08]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from minipeft.engine.bfloat16 import widened
from minipeft.method import Site
from minipeft.methods.lowrank.lora import LoRA
from minipeft.quantize import NF4, quantize
from minipeft.settings import at_least


@dataclass(frozen=True)
class QLoRA(LoRA):
    """LoRA over a base held in four bits."""

    targets: str = "all-linear"
    block: int = at_least(1, 64)
    double_quant: bool = True
    takes: ClassVar[str] = "linears"
    name: ClassVar[str] = "qlora"
    usual_lr: ClassVar[float] = 5e-3

    def base(self, site: Site) -> NF4 | None:
        held_already = isinstance(site.W, NF4)
        tied_head = site.name == "head.weight" and site.arch is not None and site.arch.tied
        if site.kind != "linear" or held_already or tied_head:
            return None
        return quantize(widened(site.W), self.block, self.double_quant)

    def requantized(self, W: Any, **arrays: Any) -> NF4:
        """W' in four bits again, W being the base as dequantised: the merge of bitsandbytes, W' only roughly."""
        return quantize(self.weight(W, **arrays), self.block, self.double_quant)
