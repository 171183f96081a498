"""VeRA: Vector-based Random Matrix Adaptation. Kopiczko et al. 2023, https://arxiv.org/abs/2310.11454

    W' = W + Λb B Λd A,    Λb = diag(lambda_b), Λd = diag(lambda_d)           (paper, eq. 2)

where A and B are the first `in` columns and the first `out` rows of one random pair that all adapted matrices share.

    A         (r, in_max)   stored    U(±√(6/in_max)), from `seed`; shared
    B         (out_max, r)  stored    U(±√(6/r)), from `seed`; shared
    lambda_d  (r)           trained   d_initial
    lambda_b  (out)         trained   0, hence W' = W before training

in_max and out_max are the largest `in` and the largest `out` among all adapted matrices, taken separately.

Size     r + out numbers per adapted matrix.
Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A only, so in training the layer is not x ↦ x W'ᵀ.
Differs  The paper has a pair for each shape of matrix (§3.1); HF peft cuts all from one pair, as here, so that another
         choice of targets gives other random matrices from the same seed. The pair is stored, never drawn again.

>>> A, B = np.array([[1., 2., 9.]]), np.array([[1.], [3.], [9.]])
>>> VeRA(r=1).weight(np.zeros((2, 2)), A=A, B=B, lambda_d=np.array([2.]), lambda_b=np.array([1., 10.]))
array([[  2.,   4.],
       [ 60., 120.]])
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.method import Base, Here, Method, Site, frozen
from minipeft.model.arch import Arch
from minipeft.settings import count, within
from minipeft.torch_random import TorchGenerator


@dataclass(frozen=True)
class VeRA(Method):
    """Two trained vectors around one random pair of matrices."""

    targets: str = "attn.q.weight attn.v.weight attn.qkv.weight"
    r: int = count(256)
    d_initial: float = 0.1
    seed: int = 0
    dropout: float = within("[0, 1)", 0.0)
    takes: ClassVar[str] = "matrices"
    name: ClassVar[str] = "vera"
    usual_lr: ClassVar[float] = 2e-2

    @classmethod
    def sized(cls, arch: Arch) -> VeRA:
        return cls(r=arch.d)

    def shared(self, sites: list[Site], rng: np.random.Generator) -> dict[str, Any]:
        out, in_ = (max(s.shape[axis] for s in sites) for axis in (0, 1))
        generator = TorchGenerator(self.seed)

        def draw(rows: int, columns: int) -> Any:  # Kaiming-uniform with gain √2, rounded in this order
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns))
            return frozen(generator.uniform((rows, columns), -bound, bound))

        return dict(A=draw(self.r, in_), B=draw(out, self.r))

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        return dict(lambda_d=np.full(self.r, self.d_initial), lambda_b=np.zeros(site.shape[0]))

    def weight(self, W: Any, *, A: Any, B: Any, lambda_d: Any, lambda_b: Any) -> Any:
        out, in_ = W.shape
        return W + (lambda_b[:, None] * B[:out]) @ (lambda_d[:, None] * A[:, :in_])

    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, lambda_d: Any, lambda_b: Any) -> Any:
        """x W'ᵀ + b without ever forming Λb B Λd A; x are token ids where the base is an embedding."""
        out, in_ = base.shape
        if base.table:
            rows = ops.take(lambda_b[:, None] * B[:out], ids=x)
            return base(x) + (rows * lambda_d) @ A[:, :in_]
        h = ops.linear(here.dropout(x, self.dropout), A[:, :in_]) * lambda_d
        return base(x) + ops.linear(h, B[:out]) * lambda_b
