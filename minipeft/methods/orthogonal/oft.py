"""OFT: Controlling Text-to-Image Diffusion by Orthogonal Finetuning. Qiu et al. 2023, https://arxiv.org/abs/2306.07280

    W' = W Rᵀ,    R = diag(R_1, …, R_K),    hence x W'ᵀ = (x R) Wᵀ             on a linear
    E' = E R                                                                   on an embedding
    R_i = (I − Q_i)(I + Q_i)⁻¹                                                 cayley="exact" (paper)
    R_i = I + 2 Q_i + 2 Q_i² + … + 2 Q_i^{k−1} + Q_i^k, k = max(terms − 1, 3)  cayley="neumann" (2506.19847)

Q_i is skew-symmetric, β × β: row i of Q fills its upper triangle, row by row, and the lower is its negative. With coft,
Q_i is first drawn into the ball ‖Q_i‖ ≤ eps/√K (eps alone with block_share) and its gradient is taken there.

p = β(β − 1)/2; K is the number of blocks, in/β, or 1 with block_share, where one block serves all. β is `block`, or
in/r where block is 0 and `r` counts the blocks. The input-side form and the series: Qiu et al. 2025,
https://arxiv.org/abs/2506.19847.

Merges   exactly: W' is an ordinary weight.
Differs  The first paper rotates outputs, W' = R W, and has cayley="exact"; the second rotates inputs, as HF peft and
         this file do, and has the series, the default. They are not the same rotation: the series approximates
         (I + Q)(I − Q)⁻¹, the inverse of the exact one. As in HF peft it ends with coefficient 1, 3 terms equal 4,
         2 terms are I + 2Q and 1 is I; and where block or r does not divide the width, the nearest divisor takes its
         place, the smaller at a tie. For coft HF peft projects the parameter in every forward pass and writes it back;
         we read the projection there, with the same gradient, and write it after each step. Its radius is in torch's
         default dtype, so in a float64 model of a float32 process it is rounded: an adapter of HF peft gets that eps. Its
         module_dropout is never applied, and is no setting here. A rotation of a tied embedding does not reach the head. HF peft merges two adapters of one linear in another order than it runs
         them; both are (W R1ᵀ) R2ᵀ here. On ViT's patches HF peft turns windows that overlap and adds them up, which is no
         rotation of a patch, nor the base before training: what it has there is refused.

>>> OFT(block=2, cayley="exact").change(Q=np.array([[1.]])).onto(np.array([[2., 1.]]))
array([[-1.,  2.]])
>>> OFT(block=2, terms=2).change(Q=np.array([[1.]])).onto(np.array([[2., 1.]]))
array([[ 4., -3.]])
"""

import math
from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    QUERY_VALUE, Method, Step, at_least, cayley, choice, count, fact, positive, requires, rotated, size, skew, trained, when,
)  # fmt: skip
from minipeft.engine import ops, stop_gradient
from minipeft.engine.backend import xp


def width(method: Any, site: Any) -> int:
    """β: the nearest divisor of the width to the one wished for, the smaller at a tie."""
    d, wish = site.shape[1], method.block or method.r
    found = min((n for n in range(1, d + 1) if d % n == 0), key=lambda n: (abs(n - wish), n))
    return found if method.block else d // found


@dataclass(frozen=True)
class OFT(Method):
    """A block-diagonal rotation of the inputs."""

    name = "oft"
    targets: str = QUERY_VALUE
    takes = "linears and lookups"
    block: int = count(32, least=0, small=lambda arch: max(4, arch.d // 8), tried=7)  # β; 0: say r instead
    r: int = count(0, least=0)  # number of blocks; 0: say block instead
    cayley: str = choice("neumann", "exact", reading=True)
    terms: int = at_least(1, 5, 1000)  # of the series
    block_share: bool = False
    coft: bool = False
    eps: float = positive(6e-5, tried=0.3)

    one = requires("(block > 0) != (r > 0)", "one of block and r must be positive, the other 0; found {block}, {r}")
    beta = fact(width)
    K = size("1 if block_share else in / beta")
    p = size("beta (beta - 1) / 2")
    Q = trained("K", "p", when="not embedding")
    Q_emb = trained("K", "p", when="embedding")

    def change(self, *, Q: Any = None, Q_emb: Any = None) -> Any:
        return rotated(self.rotation(Q_emb if Q is None else Q), table=Q is None)

    def _project(self, Q: Any) -> Any:
        """Q with each row's skew matrix, of norm √2 ‖row‖, drawn into the ball."""
        norm = math.sqrt(2) * ops.norm(Q, axis=1, keepdims=True)
        radius = xp.full((), self.eps / math.sqrt(Q.shape[0]), Q.dtype)
        return Q * (radius / ops.maximum(norm, radius))

    def rotation(self, Q: Any) -> Any:
        """R_1 … R_K (K, β, β) of Q (K, p)."""
        if self.coft:  # the value is the projection's, the gradient goes straight to Q
            Q = stop_gradient(self._project(Q)) + (Q - stop_gradient(Q))
        Q = skew(Q)
        return cayley(-Q) if self.cayley == "exact" else cayley(Q, self.terms)

    @when("coft")
    def after_step(self, step: Step) -> None:
        for arrays in step.theta.values() if self.coft else ():
            for name in arrays.keys() & {"Q", "Q_emb"}:
                arrays[name] = self._project(arrays[name])
