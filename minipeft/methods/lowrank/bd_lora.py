"""BD-LoRA: Block-Diagonal LoRA for Eliminating Communication Overhead in Tensor Parallel LoRA Serving. Wang et al. 2025, https://arxiv.org/abs/2510.23346

    W' = W + s B A,    b' = b + s c,    s = α/r as LoRA                       c with lora_bias, beside side="A"
    B  = diag(B_1, …, B_N),    B_i (out/N, r/N)                               side="B": q, k, v, up and gate projections
    A  = diag(A_1, …, A_N),    A_i (r/N, in/N)                                side="A": output and down projections

The blocks stand below each other in one array: B is (out, r/N), or A is (r, in/N). N divides r and the width.

Merges   exactly: W' is an ordinary weight.
Differs  As in HF peft a block-diagonal A starts √6 times as wide as another A of so many inputs. Its manual says of either
         side that q, k, v belong to it; what avoids communication is as above.

>>> P = np.array([[1., 2.], [3., 4.]])
>>> BDLoRA(r=2, alpha=2, blocks=2, side="A").change(A=P, B=np.eye(2)).onto(np.zeros((2, 4)))
array([[1., 2., 0., 0.],
       [0., 0., 3., 4.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import choice, count, either, lowrank, requires, shift, size, trained, uniform
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.methods.lowrank.lora import LoRA


@dataclass(frozen=True)
class BDLoRA(LoRA):
    """LoRA one of whose factors is block-diagonal."""

    name = "bd_lora"
    takes = "linears"
    r: int = count(8, small=4, tried=4)
    blocks: int = count(2)  # N
    side: str = choice("B", "A")

    no_bias = requires("not lora_bias or side == 'A'", "lora_bias goes with side='A'; expected False")
    wide, m = size("in if side == 'A' else out"), size("in / blocks if side == 'A' else in")
    ranks = requires("r % blocks == 0", "blocks must divide r = {r}, found {blocks}")
    even = requires("wide % blocks == 0", "blocks must divide the width {wide}, found {blocks},")
    A = trained("r", "m", start=either("side == 'A'", uniform("m", gain=6**0.5), uniform("in")))
    B = trained("out", "r / blocks if side == 'B' else r")

    def change(self, *, A: Any, B: Any, c: Any = None) -> Any:
        P, N = A if self.side == "A" else B, self.blocks
        rows, cols = P.shape
        apart = ops.reshape(P, shape=(N, rows // N, 1, cols)) * xp.eye(N, dtype=P.dtype)[:, None, :, None]
        P = ops.reshape(apart, shape=(rows, N * cols))
        return self.scale * (lowrank(B, P) + shift(c) if self.side == "A" else lowrank(P, A))
