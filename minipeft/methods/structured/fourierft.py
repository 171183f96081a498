"""FourierFT: Parameter-Efficient Fine-Tuning with Discrete Fourier Transform. Gao et al. 2024, https://arxiv.org/abs/2405.03003

    W' = W + α Re IDFT(F),    F[rows_i, cols_i] = c_i, else 0                  (paper, §3)
    W'[j, k] = W[j, k] + α/(out in) Σ_i c_i cos 2π(rows_i j/out + cols_i k/in)

    c     (n)  trained   N(0, 1); 0 with start="zero"
    rows  (n)  stored    where in the spectrum: n distinct places, drawn from `seed`
    cols  (n)  stored    the columns that go with them

Size     n numbers per adapted matrix, n = n_frequency and α = scaling being the fields.
Merges   exactly: W' is an ordinary weight.
Differs  Matrices of equal shape share their places, in the paper and in HF peft: one seed serves all. W' is not W
         before training, since c starts normal; with start="zero" it is. HF peft computes the transform in float32 and
         casts; we compute it in the dtype of c.

>>> one = FourierFT(n_frequency=1, scaling=4.)
>>> one.weight(np.zeros((2, 2)), c=np.array([1.]), rows=np.array([1]), cols=np.array([0]))
array([[ 1.,  1.],
       [-1., -1.]])
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
from minipeft.settings import at_least, choice
from minipeft.torch_random import TorchGenerator


@dataclass(frozen=True)
class FourierFT(Method):
    """A change that is sparse in the Fourier domain."""

    targets: str = "attn.q.weight attn.v.weight attn.qkv.weight"
    n_frequency: int = at_least(1, 1000)
    scaling: float = 150.0
    seed: int = 777
    start: str = choice("normal", "zero")
    takes: ClassVar[str] = "matrices"
    name: ClassVar[str] = "fourierft"
    usual_lr: ClassVar[float] = 2e-2

    @classmethod
    def sized(cls, arch: Arch) -> FourierFT:
        return cls(n_frequency=4 * arch.d, scaling=0.02 * arch.d**1.5)

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with c = 0."""
        return self.start == "zero"

    def sizes(self, site: Site) -> dict[str, int]:
        return dict(n=self.n_frequency)

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        out, in_ = site.shape
        if self.n_frequency > out * in_:
            raise Bad(
                f"{self.name}: {site.name} has {out}·{in_} = {out * in_} places, n_frequency is {self.n_frequency}"
            )
        rows, cols = np.divmod(_places(self.seed, out * in_)[: self.n_frequency], in_)
        c = rng.standard_normal(self.n_frequency) * (self.start == "normal")
        return dict(c=c, rows=frozen(rows), cols=frozen(cols))

    def weight(self, W: Any, *, c: Any, rows: Any, cols: Any) -> Any:
        return W + self.scaling * ops.ifft2(ops.put(c, index=(rows, cols), shape=W.shape))


@lru_cache(maxsize=4)
def _places(seed: int, n: int) -> Any:
    return TorchGenerator(seed).permutation(n)
