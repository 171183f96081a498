"""BOFT: Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization. Liu et al. 2023, https://arxiv.org/abs/2311.06243

    W' = diag(s) W Mᵀ,    M = M_F ⋯ M_1                                       (paper, eq. 4; s as in the authors' code)
    M_i = P_i diag(Q_1, …, Q_D) P_iᵀ,    Q = (I − S)(I + S)⁻¹,    S = (R − Rᵀ)/2      of every block of `block`

P_i gathers the inputs of every run of 2^(i−1) blocks: the even half-blocks first, then the odd ones. P_1 = I, so factors=1 is OFT;
with F factors a block mixes with 2^F − 1 others. M is orthogonal.

Merges   exactly: W' is an ordinary weight.
Dropout  in training each block of one factor, drawn anew at every linear, is I with probability block_dropout.
Differs  Q is HF peft's and the authors' code's: the inverse of the papers' form. HF peft's dropout makes ⌊p D⌋ blocks I, none
         where p D < 1, and it has one factor, whatever is asked for, where its extension for CUDA is not built.

>>> R, s = np.array([[[[0., 2.], [0., 0.]]]]), np.array([1., 2.])
>>> BOFT(block=2).weight(np.eye(2), R=R, s=s).round(9)
array([[ 0.,  1.],
       [-2.,  0.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import QUERY_VALUE, Method, count, fact, fill, requires, size, trained, within
from minipeft.engine import ops
from minipeft.engine.backend import xp


def gathered(n: int, h: int, i: int) -> Any:
    """(n,) the inputs in the order in which factor i, from 0, has them: (P x)[j] = x[gathered[j]]."""
    if i == 0:
        return np.arange(n)
    return np.arange(n).reshape(-1, 2**i, 2, h // 2).swapaxes(1, 2).ravel()


@dataclass(frozen=True)
class BOFT(Method):
    """Inputs turned by a product of sparse rotations."""

    name = "boft"
    targets: str = QUERY_VALUE
    takes = "linears"
    block: int = count(4, small=2, tried=lambda arch: 2 if arch.d == 12 else 7)  # β, or D
    by_number: bool = False  # whether `block` is D
    factors: int = count(1, most=16, tried=lambda arch: 2 if arch.d == 12 else 1)  # F
    block_dropout: float = within("[0, 1)", 0.0)

    divides = requires("in % block == 0", "block must divide the width {in}, found {block},")
    h, D = size("in / block if by_number else block"), size("in / h")
    run = fact(lambda m, site: (site.shape[1] // m.block if m.by_number else m.block) << (m.factors - 1))
    even = requires(
        "factors == 1 or (h % 2 == 0 and in % run == 0)",
        "{factors} factors need blocks of even size, of which runs of {run} inputs divide {in}, found blocks of {h},",
    )
    R = trained("factors", "D", "h", "h")
    s = trained("out", start=fill(1))

    def weight(self, W: Any, *, R: Any, s: Any) -> Any:
        S = 0.5 * (R - ops.swapaxes(R))
        I = xp.eye(R.shape[-1], dtype=R.dtype)
        Q = ops.solve(I + S, I - S)  # the factors commute
        for i in range(self.factors):
            to = gathered(W.shape[1], R.shape[-1], i)
            W = ops.block_matmul(W[:, np.argsort(to)], ops.swapaxes(Q[i]))[:, to]
        return s[:, None] * W

    def forward(self, x: Any, base: Any, here: Any, *, R: Any, s: Any) -> Any:
        keep = xp.ones(R.shape[:2], R.dtype)
        if self.block_dropout:
            keep[here.rng.integers(self.factors)] = here.random(R.shape[1:2]) >= self.block_dropout
        return ops.linear(x, self.weight(base.W, R=R * keep[:, :, None, None], s=s), base.b)
