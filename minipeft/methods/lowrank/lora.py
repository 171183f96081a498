"""LoRA: Low-Rank Adaptation of Large Language Models. Hu et al. 2021, https://arxiv.org/abs/2106.09685

    W' = W + s B A,    s = α/r                                                (paper, eq. 3)
    b' = b + s c                                                              with lora_bias
    s  = α/√r                                                                 with rslora (https://arxiv.org/abs/2312.03732)

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only, so in training the layer is not x ↦ x W'ᵀ; an embedding has none.
Differs  The paper draws A from a Gaussian (§4.1), loralib from U(±1/√in), as we do; HF peft has our three starts, "orthogonal"
         (https://datta0.github.io/posts/rethink-lora-init: B A = 0, neither being 0) for even r alone. An embedding is a matrix
         (V, d) like any other; peft stores its factors transposed. A tied head follows only with `tie`, its ensure_weight_tying.

>>> A, B = np.array([[1., 0., 2.]]), np.array([[1.], [3.]])
>>> LoRA(r=1, alpha=2).change(A=A, B=B).onto(np.zeros((2, 3)))
array([[ 2.,  0.,  4.],
       [ 6.,  0., 12.]])
"""

import math
from dataclasses import dataclass
from typing import Any

from minipeft.declare import DOWN, QUERY_VALUE, UP, Method, choice, count, free, lowrank, shift, trained, within


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank adaptation of linears and embeddings."""

    name = "lora"
    targets: str = QUERY_VALUE
    takes = "linears and lookups"
    r: int = count(8, tried=2)
    alpha: float = free(8.0, tried=6.0)
    dropout: float = within("[0, 1)", 0.0)
    rslora: bool = False
    lora_bias: bool = False
    start: str = choice("uniform", "gaussian", "orthogonal", varied=False)

    A = trained("r", "in", start=DOWN)
    B = trained("out", "r", start=UP)
    c = trained("out", when="lora_bias and not embedding")

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def change(self, *, A: Any, B: Any, c: Any = None) -> Any:
        return self.scale * (lowrank(B, A) + shift(c))
