"""LoKr: Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation. Yeh et al. 2023, https://arxiv.org/abs/2309.14859

    W' = W + s C ⊗ D,    D = B A,    s = α/r                                  (paper)
    (C ⊗ D)[p m2 + i, q n2 + j] = C[p, q] D[i, j]                             out = m1 m2, in = n1 n2

C is m1 × n1; with decompose_both it is P Q, of rank r as well. Of both, one whose longer side is at most 2r is trained whole.
m1 and n1 are the largest divisors of out and in up to their roots and to `factor` (-1: no limit). Over patches n1 divides the
channels, and with kernel="tucker" A is that of a Tucker decomposition: channel c at pixel p has the column Σ_j T[:, j, p] U[j, c].

Merges   exactly: W' is an ordinary weight.
Dropout  rank_dropout zeroes whole rows of the change, the others divided by the share kept; module_dropout leaves out
         the whole change, without rescaling. Both in training only.
Differs  As in LyCORIS and HF peft a `factor` that divides a width is its first part, even where it is beyond the root.
         C (or P) starts at 0, as in HF peft; start="lycoris" is LyCORIS's, D (or A) at 0. Where C and D are both whole
         LyCORIS has s = 1; here as in HF peft it stays α/r. HF peft does not divide by the share kept unless it
         is told to (rank_dropout_scale), and then gives NaN where every row falls, we no change.

>>> LoKr(r=1, alpha=2.).change(C=np.array([[1., 3.]]), D=np.array([[1.], [2.]]))
array([[ 2.,  6.],
       [ 4., 12.]])
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

from minipeft.declare import (
    QUERY_VALUE, Method, choice, count, either, fact, free, size, such_that, trained, tucker, uniform, within,
)  # fmt: skip
from minipeft.engine import ops


def first(n: int, factor: int) -> int:
    """The first of the two factors of a width."""
    most = n if factor < 0 else factor
    return most if factor > 0 and n % factor == 0 else max(m for m in range(1, min(isqrt(n), most) + 1) if n % m == 0)


@dataclass(frozen=True)
class LoKr(Method):
    """A change that is the Kronecker product of two small matrices."""

    name = "lokr"
    targets: str = QUERY_VALUE
    takes = "matrices"
    r: int = count(8, small=2)
    alpha: float = free(8.0, small=2.0, tried=6.0)
    factor: int = such_that(lambda f: f == -1 or f >= 1, "be -1 or at least 1", -1, tried=7)
    decompose_both: bool = False
    start: str = choice("peft", "lycoris")
    rank_dropout: float = within("[0, 1)", 0.0)
    module_dropout: float = within("[0, 1)", 0.0)
    kernel: str = choice("flat", "tucker", varied=False)  # over patches

    m1 = fact(lambda method, site: first(site.shape[0], method.factor))
    n1 = fact(lambda method, site: first(site.shape[1] // site.pixels, method.factor))
    m2, n2 = size("out / m1"), size("in / n1")
    two = size("decompose_both and 2 r < max(m1, n1)")  # whether C is P Q
    low = size("2 r < max(m2, n2 / pixels)")  # whether D is B A
    core = size("low and kernel == 'tucker' and pixels > 1")
    C = trained("m1", "n1", start=either("start == 'lycoris'", uniform("n1")), when="not two")
    P = trained("m1", "r", start=either("start == 'lycoris'", uniform("r")), when="two")
    Q = trained("r", "n1", start=uniform("n1"), when="two")
    D = trained("m2", "n2", start=either("start == 'peft'", uniform("n2")), when="not low")
    B = trained("m2", "r", start=uniform("m2 if core else r"), when="low")
    A = trained("r", "n2", start=either("start == 'peft'", uniform("n2")), when="low and not core")
    U = trained("r", "n2 / pixels", start=either("start == 'peft'", uniform("n2 / pixels")), when="core")
    T = trained("r", "r", "pixels", start=uniform("r pixels"), when="core")

    def change(
        self, *, C: Any = None, P: Any = None, Q: Any = None, D: Any = None, B: Any = None, A: Any = None, **kernel: Any
    ) -> Any:
        A = tucker(**kernel) if kernel else A
        C, D = P @ Q if C is None else C, B @ A if D is None else D
        product = C[:, None, :, None] * D[None, :, None, :]
        return (self.alpha / self.r) * ops.reshape(product, shape=(C.shape[0] * D.shape[0], C.shape[1] * D.shape[1]))
