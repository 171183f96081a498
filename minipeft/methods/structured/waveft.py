"""WaveFT: Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets. Bilican et al. 2025, https://arxiv.org/abs/2505.12532

    W' = W + s U F Vᵀ,    F[rows_i, cols_i] = c_i, else 0;                    W' = W + s F with idwt=False

U (out, P) and V (in, Q): one step of the wavelet's synthesis (minipeft/engine/wavelets.py), low columns, then high ones. Places are in
the middle of P × Q, whose upper right quarter has details along the outputs, the lower left along the inputs.

Merges   exactly: W' is an ordinary weight.
Differs  As in HF peft. Only db1's changes span all matrices: coefficients near the edges do little with a longer filter. HF peft's
         db3 and most symN are rounded to 10⁻¹², ours exact; its db11, sym11, coif4 and beyond are missing or wrong.

>>> one = WaveFT(n_frequency=1, scaling=4.)
>>> one.weight(np.zeros((2, 2)), c=np.array([1.]), rows=np.array([0]), cols=np.array([1]))
array([[ 2.,  2.],
       [-2., -2.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, at_least, choice, free, normal, places, requires, size, stored, trained, zero_if  # fmt: skip
from minipeft.engine import ops
from minipeft.engine.wavelets import FAMILIES, synthesis

PLACES = places("n")


@dataclass(frozen=True)
class WaveFT(Method):
    """A change that is sparse in a wavelet's domain."""

    name = "waveft"
    targets: str = QUERY_VALUE
    takes = "matrices"
    n_frequency: int = at_least(1, 2592, small=lambda arch: 4 * arch.d, tried=23)
    scaling: float = free(25.0, tried=7.0)
    wavelet: str = choice(*FAMILIES, varied=False, tried=lambda arch: "coif1" if arch.d == 12 else "db2")
    idwt: bool = True
    proportional: bool = False  # n_frequency on average, by size
    seed: int = free(777)
    start: str = choice("zero", "normal")

    n = size("max(1, quota(size, total, n_frequency sites)) if proportional else n_frequency")
    fits = requires("n <= size", "n_frequency must be at most {out}·{in} = {size}, found {n}")
    c = trained("n", start=zero_if("start == 'zero'", normal(0.01)))
    rows = stored("n", start=PLACES, below="out")
    cols = stored("n", start=PLACES, below="in", distinct_with="rows")

    identity = property(lambda self: self.start == "zero")  # type: ignore[assignment]

    def weight(self, W: Any, *, c: Any, rows: Any, cols: Any) -> Any:
        if not self.idwt:
            return W + self.scaling * ops.put(c, index=(rows, cols), shape=W.shape)
        U, V = (synthesis(n, self.wavelet, c.dtype) for n in W.shape)
        (i, m), (j, n) = ((at + (S.shape[1] - len(S)) // 2, S.shape[1] // 2) for at, S in ((rows, U), (cols, V)))
        turn = 1 * (j >= n) - (i >= m)  # 1 in the upper right quarter, −1 in the lower left
        F = ops.put(c, index=(i + turn * m, j - turn * n), shape=(2 * m, 2 * n))
        return W + self.scaling * (U @ F @ V.T)
