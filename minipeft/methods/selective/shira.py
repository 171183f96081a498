"""SHiRA: Sparse High Rank Adapters. Bhardwaj et al. 2024, https://arxiv.org/abs/2406.13175

    W' = W + s S,    S[rows_i, cols_i] = v_i, else 0

Merges   exactly: W' is an ordinary weight.
Differs  The paper has masks by magnitude, gradient, structure and more; HF peft has the random one, as here. Without a
         seed HF peft's mask is constant all the same, since torch's generator then has a fixed seed: so is ours. Equal
         shapes have equal masks. Only the chosen elements have optimiser state, so no momentum reaches the others.

>>> SHiRA(scale=2.).weight(np.zeros((2, 2)), v=np.array([1., 3.]), rows=np.array([0, 1]), cols=np.array([1, 0]))
array([[0., 2.],
       [6., 0.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, count, free, places, requires, stored, trained
from minipeft.engine import ops

PLACES = places("r (in + out)", in_order=True)


@dataclass(frozen=True)
class SHiRA(Method):
    """A few trained elements of each matrix."""

    name = "shira"
    targets: str = QUERY_VALUE
    takes = "matrices"
    r: int = count(32, small=lambda arch: max(1, arch.d // 32), tried=2)
    scale: float = free(1.0, tried=1.75)  # s
    seed: int | None = free(None)  # None: torch's constant

    fits = requires(
        "r (in + out) <= size", "r ({in} + {out}) must be at most {out}·{in} = {size}, found {r (in + out)}"
    )
    v = trained("r (in + out)")
    rows = stored("r (in + out)", start=PLACES, below="out")
    cols = stored("r (in + out)", start=PLACES, below="in", distinct_with="rows")

    def weight(self, W: Any, *, v: Any, rows: Any, cols: Any) -> Any:
        return W + self.scale * ops.put(v, index=(rows, cols), shape=W.shape)
