"""LoHa: FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning. Hyeon-Woo, Ye-Bin, Oh 2021, https://arxiv.org/abs/2108.06098

    W' = W + s (X1 Y1) ∘ (X2 Y2),    s = α/r                                  (paper, prop. 1, for a change of W)

∘ being the product element by element: the change has rank up to r².

    X1  (out, r)  trained   U(±1/√r)
    Y1  (r, in)   trained   U(±1/√in)
    X2  (out, r)  trained   U(±1/√r)
    Y2  (r, in)   trained   0, hence W' = W before training

Size     2 r (in + out) numbers per adapted matrix.
Merges   exactly: W' is an ordinary weight.
Dropout  rank_dropout zeroes whole rows of the change, the others divided by the share kept; module_dropout leaves out
         the whole change, without rescaling. Both in training only.
Differs  The paper has Y1 and Y2 transposed and no base weight; LyCORIS made it a change of W, and draws normals where
         HF peft, followed here, draws uniformly. Where rank_dropout hits every row HF peft gives NaN, we no change.

>>> X, Y1, Y2 = np.array([[1.], [2.]]), np.array([[1., 1.]]), np.array([[1., 5.]])
>>> LoHa(r=1, alpha=1.).weight(np.zeros((2, 2)), X1=X, Y1=Y1, X2=X, Y2=Y2)
array([[ 1.,  5.],
       [ 4., 20.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.engine.backend import to_device, xp
from minipeft.method import Base, Here, Method, Site
from minipeft.settings import count, within


@dataclass(frozen=True)
class LoHa(Method):
    """A change that is the elementwise product of two low-rank matrices."""

    targets: str = "attn.q.weight attn.v.weight attn.qkv.weight"
    r: int = count(8)
    alpha: float = 8.0
    rank_dropout: float = within("[0, 1)", 0.0)
    module_dropout: float = within("[0, 1)", 0.0)
    takes: ClassVar[str] = "matrices"
    name: ClassVar[str] = "loha"
    usual_lr: ClassVar[float] = 1e-2

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        out, in_ = site.shape

        def uniform(fan: int, *shape: int) -> Any:
            return rng.uniform(-(fan**-0.5), fan**-0.5, shape)

        X1, Y1 = uniform(self.r, out, self.r), uniform(in_, self.r, in_)
        return dict(X1=X1, Y1=Y1, X2=uniform(self.r, out, self.r), Y2=np.zeros((self.r, in_)))

    def _change(self, X1: Any, Y1: Any, X2: Any, Y2: Any) -> Any:
        return (self.alpha / self.r) * ((X1 @ Y1) * (X2 @ Y2))

    def weight(self, W: Any, **factors: Any) -> Any:
        return W + self._change(**factors)

    def forward(self, x: Any, base: Base, here: Here, **factors: Any) -> Any:
        """x W'ᵀ + b, with the dropouts in training."""
        change = self._change(**factors)
        if here.train and self.module_dropout and here.rng.random() < self.module_dropout:
            return base(x)
        if here.train and self.rank_dropout:
            keep = to_device(here.rng.random(change.shape[0])) >= self.rank_dropout
            change = change * (keep / xp.maximum(keep.mean(), 1 / keep.size)).astype(change.dtype)[:, None]
        if base.table:
            return base(x) + ops.take(change, ids=x)
        return ops.linear(x, base.W + change, base.b)
