"""MiSS-BAT: Balancing LoRA Performance and Efficiency with Simple Shard Sharing, its variant that depends on W. Kang, Yin 2024, https://arxiv.org/abs/2409.15371

    W'_OI = W_OI (I + B_O) + B_O                                              (paper, §3.4; "bat": block-affine adaptation)

for every r × r block of W, in row O and column I of blocks: those of a row share B_O.

Merges   exactly: W' is an ordinary weight.
Differs  HF peft has no dropout here, whatever miss_dropout says, and takes W' back by an inverse in float32.

>>> MiSSBAT(r=1).weight(np.array([[1., 2.], [3., 4.]]), B=np.array([[[1.]], [[0.]]]))
array([[3., 5.],
       [3., 4.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, count, divides, trained
from minipeft.engine import ops


@dataclass(frozen=True)
class MiSSBAT(Method):
    """An affine map of the blocks of every row of blocks."""

    name = "miss_bat"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(64, small=2, tried=lambda arch: 4 if arch.d == 12 else 2)

    fits = divides("r")
    B = trained("out / r", "r", "r")

    def weight(self, W: Any, *, B: Any) -> Any:
        (O, r, _), n = B.shape, W.shape[1]
        blocks = ops.transpose(ops.reshape(W, shape=(O, r, n // r, r)), axes=(0, 2, 1, 3))
        changed = ops.transpose(blocks @ B[:, None] + B[:, None], axes=(0, 2, 1, 3))
        return W + ops.reshape(changed, shape=(O * r, n))
