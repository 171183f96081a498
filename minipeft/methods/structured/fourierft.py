"""FourierFT: Parameter-Efficient Fine-Tuning with Discrete Fourier Transform. Gao et al. 2024, https://arxiv.org/abs/2405.03003

    W' = W + α Re IDFT(F),    F[rows_i, cols_i] = c_i, else 0                  (paper, §3)
    W'[j, k] = W[j, k] + α/(out in) Σ_i c_i cos 2π(rows_i j/out + cols_i k/in)

Merges   exactly: W' is an ordinary weight.
Differs  Matrices of equal shape share their places, as in the paper and HF peft. Since c starts normal, W' is not W before
         training; with start="zero" it is. HF peft computes the transform in float32 and casts, we in the dtype of c.

>>> one = FourierFT(n_frequency=1, scaling=4.)
>>> one.weight(np.zeros((2, 2)), c=np.array([1.]), rows=np.array([1]), cols=np.array([0]))
array([[ 1.,  1.],
       [-1., -1.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    QUERY_VALUE, Method, at_least, choice, free, normal, places, requires, stored, trained, zero_if,
)  # fmt: skip
from minipeft.engine import ops

PLACES = places("n_frequency")


@dataclass(frozen=True)
class FourierFT(Method):
    """A change that is sparse in the Fourier domain."""

    name = "fourierft"
    targets: str = QUERY_VALUE
    takes = "matrices"
    n_frequency: int = at_least(1, 1000, small=lambda arch: 4 * arch.d, tried=9)
    scaling: float = free(150.0, small=lambda arch: 0.02 * arch.d**1.5, tried=7.0)
    seed: int = free(777)
    start: str = choice("normal", "zero")

    fits = requires("n_frequency <= size", "n_frequency must be at most {out}·{in} = {size}, found {n_frequency}")
    c = trained("n_frequency", start=zero_if("start == 'zero'", normal()))
    rows = stored("n_frequency", start=PLACES, below="out")
    cols = stored("n_frequency", start=PLACES, below="in", distinct_with="rows")

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with c = 0."""
        return self.start == "zero"

    def weight(self, W: Any, *, c: Any, rows: Any, cols: Any) -> Any:
        return W + self.scaling * ops.ifft2(ops.put(c, index=(rows, cols), shape=W.shape))
