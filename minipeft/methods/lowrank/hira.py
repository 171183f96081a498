"""HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models. Huang et al. 2025, https://openreview.net/forum?id=TwJrTz9cRS

    W' = W + W ∘ (B A)                                                        (paper, eq. 5)

∘ being the product element by element: the change has rank up to r · rank W.

Merges   exactly: W' is an ordinary weight.
Dropout  acts on the input of the change; an embedding has none.
Differs  There is no α: the scale of W is that of the change. HF peft draws A as LoRA's, or with start="gaussian" from N(0, 1/r²).

>>> HiRA(r=1).weight(np.array([[1., 2.], [3., 0.]]), A=np.array([[1., 2.]]), B=np.array([[1.], [2.]]))
array([[2., 6.],
       [9., 0.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, choice, count, either, normal, trained, uniform, within


@dataclass(frozen=True)
class HiRA(Method):
    """A low-rank matrix that multiplies the weight."""

    name = "hira"
    targets: str = QUERY_VALUE
    takes = "linears and lookups"
    r: int = count(32, small=2, tried=2)
    dropout: float = within("[0, 1)", 0.0)
    start: str = choice("uniform", "gaussian", varied=False)

    LINEAR = either("start == 'gaussian'", normal(over="r"), uniform("in"))
    A = trained("r", "in", start=either("embedding", normal(), LINEAR))
    B = trained("out", "r")

    def weight(self, W: Any, *, A: Any, B: Any) -> Any:
        return W + W * (B @ A)
