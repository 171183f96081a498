"""Super-Tuning: From Activation-Aware Pruning to Sparse Fine-Tuning. Ilin et al. 2026, https://arxiv.org/abs/2607.09287

    W' = W + S + s B A,    S[⌊p_i/in⌋, p_i mod in] = v_i, else 0              Supra; without r no B A: Super
    p places of the n = ⌊out·in (1 − sparsity)⌋ largest |W|, the largest first; without top of the smallest

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of A alone.
Differs  The paper also scores by activations; HF peft has |W| alone, as here, and s = alpha/r, usually 2. Its n is ours,
         cut off in floating point: 0.9 of 1000 leaves 99. Of equal |W| the first counts here; torch promises no order.

>>> SuperTuning().weight(np.zeros((1, 3)), v=np.array([1., 5.]), p=np.array([2, 0]))
array([[5., 0., 1.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    QUERY_VALUE, Base, Here, Method, count, extremes, free, requires, size, stored, trained, uniform, within,
)  # fmt: skip
from minipeft.engine import ops


@dataclass(frozen=True)
class SuperTuning(Method):
    """The largest elements of each matrix trained, and perhaps a low rank beside them."""

    name = "supertuning"
    targets: str = QUERY_VALUE
    takes = "linears"
    sparsity: float = within("[0, 1)", 0.99, small=0.9, tried=0.8)
    top: bool = True
    r: int = count(0, least=0, tried=2, also=(0,))  # 0: Super, without a low rank
    scale: float = free(2.0, tried=1.75)  # s
    dropout: float = within("[0, 1)", 0.0)

    n = size("int(out in (1 - sparsity))")
    some = requires("n >= 1", "sparsity {sparsity} leaves none of {out}·{in} elements")
    v = trained("n")
    p = stored("n", start=extremes("n", "top"), below="out in", distinct_with="p")
    A = trained("r", "in", start=uniform("in"), when="r")
    B = trained("out", "r", when="r")

    def weight(self, W: Any, *, v: Any, p: Any, A: Any = None, B: Any = None) -> Any:
        W = W + ops.reshape(ops.put(v, index=(p,), shape=(W.size,)), shape=W.shape)
        return W if A is None else W + self.scale * (B @ A)

    def forward(self, x: Any, base: Base, here: Here, *, v: Any, p: Any, A: Any = None, B: Any = None) -> Any:
        y = base(x) + ops.linear(x, self.weight(0 * base.W, v=v, p=p))
        return y if A is None else ops.add_lowrank(y, here.dropout(x, self.dropout), A, B, s=self.scale)
