"""Super-Tuning: From Activation-Aware Pruning to Sparse Fine-Tuning. Ilin et al. 2026, https://arxiv.org/abs/2607.09287

    W' = W + S,            S[⌊p_i/in⌋, p_i mod in] = v_i, else 0              Super
    W' = W + S + s B A,    s = α/r                                            Supra: with r; α = 2r unless it is given

p are the places of the n largest |W|, the largest first, counted row by row; or of the n smallest, with top=False.
n = ⌊out·in (1 − sparsity)⌋ in floating point: 0.9 of 1000 elements leaves 99, since 1 − 0.9 is 0.0999….

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A alone.
Differs  The paper also scores by |W| and the size of activations; HF peft has magnitudes alone, as here. Of equal |W|
         the first counts here; torch promises no order, so a file without its places, of a base with ties, is ambiguous.

>>> SuperTuning().weight(np.zeros((2, 3)), v=np.array([1., 5.]), p=np.array([4, 2]))
array([[0., 0., 5.],
       [0., 1., 0.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    QUERY_VALUE, Here, Method, count, found, free, requires, size, stored, trained, uniform, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.method import Base


def extreme(method: Any, facts: Any) -> Any:
    """p."""
    w = abs(facts.W.reshape(-1))
    return np.argsort(-w if method.top else w, kind="stable")[: facts["n"]]


@dataclass(frozen=True)
class SuperTuning(Method):
    """The largest elements of each matrix trained, and a low rank beside them."""

    name = "supertuning"
    targets: str = QUERY_VALUE
    takes = "linears"
    sparsity: float = within("[0, 1)", 0.99, small=0.9, tried=0.8)
    top: bool = True
    r: int = count(0, least=0, tried=2, also=(0,))  # 0: Super, without a low rank
    alpha: float | None = free(None, tried=6.0)  # None: 2r
    dropout: float = within("[0, 1)", 0.0)

    n = size("int(out in (1 - sparsity))")
    some = requires("n >= 1", "sparsity {sparsity} leaves none of {out}·{in} elements")
    v = trained("n")
    p = stored("n", start=found(extreme, "the places of the extreme |W|"), below="out in", distinct_with="p")
    A = trained("r", "in", start=uniform("in"), when="r")
    B = trained("out", "r", when="r")

    @property
    def scale(self) -> float:
        """s."""
        return 2.0 if self.alpha is None else self.alpha / max(self.r, 1)

    def sparse(self, shape: tuple[int, ...], v: Any, p: Any) -> Any:
        """S."""
        return ops.put(v, index=(p // shape[1], p % shape[1]), shape=shape)

    def weight(self, W: Any, *, v: Any, p: Any, A: Any = None, B: Any = None) -> Any:
        W = W + self.sparse(W.shape, v, p)
        return W if A is None else W + self.scale * (B @ A)

    def forward(self, x: Any, base: Base, here: Here, *, v: Any, p: Any, A: Any = None, B: Any = None) -> Any:
        y = base(x) + ops.linear(x, self.sparse(base.shape, v, p))
        return y if A is None else ops.add_lowrank(y, here.dropout(x, self.dropout), A, B, s=self.scale)
