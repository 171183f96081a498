"""LoRA: Low-Rank Adaptation of Large Language Models. Hu et al. 2021, https://arxiv.org/abs/2106.09685

    W' = W + s B A,    s = α/r                                                (paper, eq. 3)
    b' = b + s c                                                              with lora_bias
    s  = α/√r                                                                 with rslora (https://arxiv.org/abs/2312.03732)

    A  (r, in)    trained   U(-1/√in, 1/√in); N(0, 1) on an embedding
    B  (out, r)   trained   0, hence W' = W before training
    c  (out)      trained   0; only with lora_bias, on linears

Size     r (in + out) + lora_bias out numbers per adapted matrix; r (V + d) on an embedding.
Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only, so in training the layer is not x ↦ x W'ᵀ; an embedding has none.
Differs  The paper draws A from a Gaussian (§4.1); the authors' loralib and HF peft draw it Kaiming-uniformly with
         a = √5, which is the U above. We follow the code. An embedding is a matrix (V, d) like any other here; HF peft
         stores its factors transposed, A (r, V) zero and B (d, r) normal. A change of a tied embedding does not reach
         the head.

>>> A, B = np.array([[1., 0., 2.]]), np.array([[1.], [3.]])
>>> LoRA(r=1, alpha=2).weight(np.zeros((2, 3)), A=A, B=B)
array([[ 2.,  0.,  4.],
       [ 6.,  0., 12.]])
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.engine.bfloat16 import widened
from minipeft.engine.factors import finite, leading, principal
from minipeft.errors import Bad
from minipeft.method import Base, Here, Method, Site
from minipeft.settings import count, within


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank adaptation of linears and embeddings."""

    targets: str = "attn.q.weight attn.v.weight attn.qkv.weight"
    r: int = count(8)
    alpha: float = 8.0
    dropout: float = within("[0, 1)", 0.0)
    rslora: bool = False
    lora_bias: bool = False
    takes: ClassVar[str] = "matrices"
    name: ClassVar[str] = "lora"
    ties: ClassVar[bool] = False

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        out, in_ = site.shape
        bound = in_**-0.5
        embedding = site.kind == "embedding"
        A = rng.standard_normal((self.r, in_)) if embedding else rng.uniform(-bound, bound, (self.r, in_))
        arrays = dict(A=A, B=np.zeros((out, self.r)))
        return arrays | dict(c=np.zeros(out)) if self.lora_bias and not embedding else arrays

    def first(self, site: Site, factors: str) -> dict[str, Any]:
        """A, B for methods that start from the weight of a linear and take s B A away from it: "svd" of W/s, or "qr" of W."""
        if self.r > min(site.shape):
            raise Bad(
                f"{self.name}: r must be at most {min(site.shape)} at {site.name} of shape {site.shape}, found {self.r}"
            )
        W = finite(f"{self.name}: {site.name}", widened(site.W))
        A, B = leading(W, self.r) if factors == "qr" else principal(W, self.r)
        root = 1.0 if factors == "qr" else self.scale**-0.5
        return dict(A=root * A, B=root * B)

    def weight(self, W: Any, *, A: Any, B: Any, c: Any = None) -> Any:
        return W + self.scale * (B @ A)

    def bias(self, b: Any, *, c: Any = None, **_: Any) -> Any:
        if c is None:
            return b
        return self.scale * c if b is None else b + self.scale * c

    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, c: Any = None) -> Any:
        """x W'ᵀ + b' without ever forming B A; x are token ids where the base is an embedding."""
        if base.table:
            return base(x) + self.scale * (ops.take(B, ids=x) @ A)
        if base.plain and not (here.train and self.dropout):
            y = ops.linear_lowrank(x, base.held, A, B, base.b, s=self.scale)
        else:
            y = ops.add_lowrank(base(x), here.dropout(x, self.dropout), A, B, s=self.scale)
        return y if c is None else y + self.scale * c
