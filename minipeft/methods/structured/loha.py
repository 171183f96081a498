"""LoHa: FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning. Hyeon-Woo, Ye-Bin, Oh 2021, https://arxiv.org/abs/2108.06098

    W' = W + s (X1 Y1) ∘ (X2 Y2),    s = α/r                                  (paper, prop. 1, for a change of W)

∘ being the product element by element: the change has rank up to r².

Merges   exactly: W' is an ordinary weight.
Dropout  rank_dropout zeroes whole rows of the change, the others divided by the share kept; module_dropout leaves out
         the whole change, without rescaling. Both in training only.
Differs  The paper has Y1 and Y2 transposed and no base weight; LyCORIS made it a change of W, and draws normals where
         HF peft, followed here, draws uniformly. Where rank_dropout hits every row HF peft gives NaN, we no change.

>>> X, Y1, Y2 = np.array([[1.], [2.]]), np.array([[1., 1.]]), np.array([[1., 5.]])
>>> LoHa(r=1, alpha=1.).change(X1=X, Y1=Y1, X2=X, Y2=Y2)
array([[ 1.,  5.],
       [ 4., 20.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, count, free, trained, uniform, within


@dataclass(frozen=True)
class LoHa(Method):
    """A change that is the elementwise product of two low-rank matrices."""

    name = "loha"
    targets: str = QUERY_VALUE
    takes = "matrices"
    r: int = count(8, tried=2)
    alpha: float = free(8.0, tried=6.0)
    rank_dropout: float = within("[0, 1)", 0.0)
    module_dropout: float = within("[0, 1)", 0.0)

    X1 = trained("out", "r", start=uniform("r"))
    Y1 = trained("r", "in", start=uniform("in"))
    X2 = trained("out", "r", start=uniform("r"))
    Y2 = trained("r", "in")

    def change(self, *, X1: Any, Y1: Any, X2: Any, Y2: Any) -> Any:
        return (self.alpha / self.r) * ((X1 @ Y1) * (X2 @ Y2))
