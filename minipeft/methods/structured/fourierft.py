"""FourierFT: Parameter-Efficient Fine-Tuning with Discrete Fourier Transform. Gao et al. 2024, https://arxiv.org/abs/2405.03003

    W' = W + α Re IDFT(F),    F[rows_i, cols_i] = c_i, else 0                  (paper, eq. 2–4)
    W'[j, k] = W[j, k] + α/(out in) Σ_i c_i cos 2π(rows_i j/out + cols_i k/in)

    c     (f)  trained   N(0, 1); 0 with start="zero"
    rows  (f)  stored    where in the spectrum: `f` distinct places drawn from `seed`
    cols  (f)  stored

Size     f numbers per adapted matrix.
Merges   exactly: W' is an ordinary weight.
Differs  Matrices of equal shape share their places, in the paper and in HF peft: one seed serves all. W' is not W before
         training, since c starts normal; with start="zero" it is. HF peft computes the transform in float32 and casts;
         we compute it in the dtype of c.

>>> FourierFT(f=1, alpha=4.).weight(np.zeros((2, 2)), c=np.array([1.]), rows=np.array([1]), cols=np.array([0]))
array([[ 1.,  1.],
       [-1., -1.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.errors import Bad, near
from minipeft.method import Method, Site, frozen
from minipeft.torch_random import TorchGenerator


@dataclass(frozen=True)
class FourierFT(Method):
    """A change that is sparse in the Fourier domain."""

    targets: str = "attn.q.weight attn.v.weight attn.qkv.weight"
    f: int = 1000  # trained coefficients, the paper's n
    alpha: float = 150.0
    seed: int = 777
    start: str = "normal"  # "normal" | "zero"
    name: ClassVar[str] = "fourierft"

    def __post_init__(self) -> None:
        if self.f < 1:
            raise Bad(f"{self.name}: f must be at least 1, found {self.f}")
        if self.start not in ("normal", "zero"):
            raise Bad(f"{self.name}: start must be 'normal' or 'zero', found {self.start!r}{near(self.start, ('normal', 'zero'))}")

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with c = 0."""
        return self.start == "zero"

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        out, in_ = site.shape
        if self.f > out * in_:
            raise Bad(f"{self.name}: {site.name} has {out}·{in_} = {out * in_} places, found f = {self.f}")
        rows, cols = np.divmod(_places(self.seed, out * in_)[: self.f], in_)
        c = rng.standard_normal(self.f) * (self.start == "normal")
        return dict(c=c, rows=frozen(rows), cols=frozen(cols))

    def weight(self, W: Any, *, c: Any, rows: Any, cols: Any) -> Any:
        return W + self.alpha * ops.ifft2(ops.put(c, index=(rows, cols), shape=W.shape))


@lru_cache(maxsize=4)
def _places(seed: int, n: int) -> Any:
    return TorchGenerator(seed).permutation(n)
