"""LoHa: FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning. Hyeon-Woo, Ye-Bin, Oh 2021, https://arxiv.org/abs/2108.06098

    W' = W + s (X1 Y1) ∘ (X2 Y2),    s = α/r                                  (paper, prop. 1, for a change of W)

∘ being the product element by element: the change has rank up to r². Over patches, with kernel="tucker", Y1 and Y2 are those
of a Tucker decomposition (prop. 3): channel c at pixel p has the column Σ_j T1[:, j, p] U1[j, c].

Merges   exactly: W' is an ordinary weight.
Dropout  rank_dropout zeroes whole rows of the change, the others divided by the share kept; module_dropout leaves out
         the whole change, without rescaling. Both in training only.
Differs  The paper has Y1 and Y2 transposed and no base weight; LyCORIS made it a change of W, and draws normals where HF peft,
         followed here, draws uniformly. Where rank_dropout hits every row HF peft gives NaN, we no change.

>>> X, Y1, Y2 = np.array([[1.], [2.]]), np.array([[1., 1.]]), np.array([[1., 5.]])
>>> LoHa(r=1, alpha=1.).change(X1=X, Y1=Y1, X2=X, Y2=Y2)
array([[ 1.,  5.],
       [ 4., 20.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, choice, count, free, size, trained, tucker, uniform, within


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
    kernel: str = choice("flat", "tucker", varied=False)  # over patches

    core = size("kernel == 'tucker' and pixels > 1")
    X1 = trained("out", "r", start=uniform("out if core else r"))
    Y1 = trained("r", "in", start=uniform("in"), when="not core")
    X2 = trained("out", "r", start=uniform("out if core else r"))
    Y2 = trained("r", "in", when="not core")
    U1 = trained("r", "in / pixels", start=uniform("in / pixels"), when="core")
    U2 = trained("r", "in / pixels", when="core")
    T1 = T2 = trained("r", "r", "pixels", start=uniform("r pixels"), when="core")

    def change(self, *, X1: Any, X2: Any, Y1: Any = None, Y2: Any = None, **kernel: Any) -> Any:
        Y1, Y2 = (tucker(kernel[f"T{i}"], kernel[f"U{i}"]) for i in (1, 2)) if kernel else (Y1, Y2)
        return (self.alpha / self.r) * ((X1 @ Y1) * (X2 @ Y2))
