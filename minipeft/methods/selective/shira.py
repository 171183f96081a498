"""SHiRA: Sparse High Rank Adapters. Bhardwaj et al. 2024, https://arxiv.org/abs/2406.13175

    W' = W + s S,    S[rows_i, cols_i] = v_i, else 0

    v     (r (in + out))  trained   0, hence W' = W before training
    rows  (r (in + out))  stored    which elements, in row-major order: distinct, drawn from `seed`
    cols  (r (in + out))  stored    the columns that go with them

Size     r (in + out) numbers per adapted matrix, as many as LoRA of rank r.
Merges   exactly: W' is an ordinary weight.
Differs  The paper has masks by magnitude, gradient, structure and more; HF peft has the random one, as here. Without a
         seed HF peft's mask is constant all the same, since torch's generator then has a fixed seed: so is ours. Equal
         shapes have equal masks. Only the chosen elements have optimiser state, so no momentum reaches the others.

>>> SHiRA(scale=2.).weight(np.zeros((2, 2)), v=np.array([1., 3.]), rows=np.array([0, 1]), cols=np.array([1, 0]))
array([[0., 2.],
       [6., 0.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.errors import Bad
from minipeft.method import Method, Site, frozen
from minipeft.model.arch import Arch
from minipeft.settings import count
from minipeft.torch_random import UNSEEDED, TorchGenerator


@dataclass(frozen=True)
class SHiRA(Method):
    """A few trained elements of each matrix."""

    targets: str = "attn.q.weight attn.v.weight attn.qkv.weight"
    r: int = count(32)
    scale: float = 1.0  # s
    seed: int | None = None  # None: torch's constant
    takes: ClassVar[str] = "matrices"
    name: ClassVar[str] = "shira"

    @classmethod
    def sized(cls, arch: Arch) -> SHiRA:
        return cls(r=max(1, arch.d // 32))

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        out, in_ = site.shape
        k = self.r * (in_ + out)
        if k > out * in_:
            raise Bad(f"{self.name}: {site.name} has {out}·{in_} = {out * in_} elements, found r ({in_} + {out}) = {k}")
        rows, cols = np.divmod(np.sort(_places(UNSEEDED if self.seed is None else self.seed, out * in_)[:k]), in_)
        return dict(v=np.zeros(k), rows=frozen(rows), cols=frozen(cols))

    def weight(self, W: Any, *, v: Any, rows: Any, cols: Any) -> Any:
        return W + self.scale * ops.put(v, index=(rows, cols), shape=W.shape)


@lru_cache(maxsize=4)
def _places(seed: int, n: int) -> Any:
    return TorchGenerator(seed).permutation(n)
