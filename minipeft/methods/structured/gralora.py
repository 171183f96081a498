"""GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-tuning. Jung et al. 2025, https://arxiv.org/abs/2505.20355

    W'_ji = W_ji + s (A_i^j B_j^i)ᵀ,    s = α/(r + h)                         (paper, eq. 4)
    W'    = W + … + s G H                                                     with a hybrid rank h (§3.4)

for block j of k rows of blocks and i of k columns: A_i^j are columns j r/k … of A_i (in/k, r), B_j^i rows i r/k … of B_j (r, out/k). So every
block has factors of rank r/k of its own, and W' − W a rank of up to k r, at the size of LoRA's factors.

Merges   exactly: W' is an ordinary weight.
Differs  As in HF peft the sum of both ranks divides α; it drops twice, and apart, where there is a hybrid rank.

>>> A, B = np.array([[[1., 2.]], [[3., 4.]]]), np.array([[[1.], [10.]], [[1.], [10.]]])
>>> GraLoRA(r=2, k=2, alpha=2.).change(A=A, B=B)
array([[ 1., 30.],
       [ 2., 40.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, count, divides, free, requires, trained, uniform, within
from minipeft.engine import ops


@dataclass(frozen=True)
class GraLoRA(Method):
    """Low-rank adaptation of every block of the weight."""

    name = "gralora"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(32, small=4, tried=lambda arch: 8 if arch.d == 12 else 2)
    k: int = count(2, small=2, tried=lambda arch: 4 if arch.d == 12 else 1)
    h: int = count(0, least=0, also=(3,))
    alpha: float = free(64.0, small=4.0, tried=6.0)
    dropout: float = within("[0, 1)", 0.0)

    ranks = requires("r % k == 0", "k must divide r, found {k} and {r}")
    fits = divides("k")
    A = trained("k", "in / k", "r", start=uniform("in / k"))
    B = trained("k", "r", "out / k")
    H = trained("h", "in", start=uniform("in"), when="h > 0")
    G = trained("out", "h", when="h > 0")

    def change(self, *, A: Any, B: Any, H: Any = None, G: Any = None) -> Any:
        k, q = self.k, self.r // self.k
        A = ops.transpose(ops.reshape(A, shape=(k, -1, k, q)), axes=(2, 0, 3, 1))  # j, i, q, in/k
        B = ops.transpose(ops.reshape(B, shape=(k, k, q, -1)), axes=(0, 1, 3, 2))  # j, i, out/k, q
        D = ops.reshape(ops.transpose(B @ A, axes=(0, 2, 1, 3)), shape=(k * B.shape[2], k * A.shape[3]))
        return self.alpha / (self.r + self.h) * (D if H is None else D + G @ H)
