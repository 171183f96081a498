"""MiSS: Balancing LoRA Performance and Efficiency with Simple Shard Sharing. Kang, Yin 2024, https://arxiv.org/abs/2409.15371

    W'[o, i] = W[o, i] + D[i mod r, o]                                        (paper, eq. 4)
    W'[o, i] = W[o, i] + D[i mod r, o mod m]                                  with mini

So every r-th input shares its column of the change, whose rank is at most r: the inputs of a shard are summed.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the inputs, before they are summed.
Differs  There is no scale. Its first versions and HF peft up to 0.18 call it Bone. Shards are interleaved, as in HF peft and the
         authors' code; in the paper's figure they lie side by side.

>>> MiSS(r=2).weight(np.zeros((2, 3)), D=np.array([[1., 2.], [3., 4.]]))
array([[1., 3., 1.],
       [2., 4., 2.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, count, requires, size, trained, within
from minipeft.engine import ops


@dataclass(frozen=True)
class MiSS(Method):
    """One change for the sum of many inputs."""

    name = "miss"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(64, small=2, tried=lambda arch: 5 if arch.d == 12 else 7)
    mini: int = count(0, least=0, also=(2,))  # m; 0: as many as there are outputs
    dropout: float = within("[0, 1)", 0.0)

    shards = requires("r <= in", "r must be at most the width {in}, found {r},")
    divides = requires("mini == 0 or out % mini == 0", "mini must divide the width {out}, found {mini},")
    m = size("mini or out")
    D = trained("r", "m")

    def weight(self, W: Any, *, D: Any) -> Any:
        (out, n), (r, m) = W.shape, D.shape
        D = ops.broadcast_to(D[:, None, :], shape=(-(-n // r), r, out // m, m))
        return W + ops.swapaxes(ops.reshape(D, shape=(-1, out)))[:, :n]
