"""Lily: Low-Rank Interconnected Adaptation across Layers. Zhong & Zhou 2024, https://arxiv.org/abs/2407.09946

    y = x Wᵀ + b + s h Σ_e p_e B_e,    h = x Aᵀ
    p = mean over all tokens of the batch of softmax(h Rᵀ)

Matrices of one name in all layers are a group, unless `group` names others: it has one set of experts B_1 … B_E, every
`stride` of its matrices, one after the other, have one A, and each has a router R of its own.

Merges   no: p depends on the batch.
Differs  The mean is the authors' and HF peft's: what comes of a text depends on the texts, and the padding, beside it, and in
         generation that keeps keys on how many tokens a step has. HF peft groups by the entry of target_modules that ends a
         name, and by shape: with a regular expression by shape alone. The authors' own for language models has s = 1, and as
         its `monoscale` p_e = 1/E without a router.

>>> A, R, B = np.array([[1., 0.]]), np.zeros((2, 1)), np.array([[2.], [4.]])
>>> base = lambda x: x[:, :1]
>>> Lily(r=1).forward(np.array([[5., 1.]]), base, None, A=A, R=R, B=B)  # 5 + 5 (2 + 4) / 2
array([[20.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Here, Method, count, free, in_layers, trained, uniform
from minipeft.engine import ops
from minipeft.method import Base


@dataclass(frozen=True)
class Lily(Method):
    """Low-rank factors shared by layers, the second a mixture."""

    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(32, small=4, tried=3)
    stride: int = count(1)  # how many matrices have one A
    experts: int = count(2, least=2, tried=3)
    s: float = free(1.0, tried=1.5)
    group: str = free("")

    A = trained("r", "in", start=uniform("in"), shared_by=in_layers("stride"))
    B = trained("experts r", "out", shared_by=in_layers())
    R = trained("experts", "r", start=uniform("r"))

    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, R: Any) -> Any:
        h = ops.linear(x, A)
        p = ops.mean(ops.reshape(ops.softmax(ops.linear(h, R)), shape=(-1, self.experts, 1, 1)), axis=0)
        return base(x) + self.s * (h @ ops.sum(p * ops.reshape(B, shape=(*R.shape, -1)), axis=0))
