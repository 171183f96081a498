"""C3A: Parameter-Efficient Fine-Tuning via Circular Convolution. Chen et al. 2024, https://arxiv.org/abs/2407.19342

    W' = W + ΔW,    block (p, q) of ΔW:  ΔW_pq[t, u] = k_pq[(u − t) mod β] / in

each block of β × β being circulant, with k_pq / in as its first row; β is `block`.

Merges   exactly: W' is an ordinary weight.
Differs  The division by the number of inputs, not by β, and the starts are HF peft's, which computes in float32 by fast Fourier
         transforms; we gather the blocks, in the dtype of k. Only start="zero" leaves W as it is before training. HF peft's
         gradient with respect to the input is that of the transposed circulants, which is wrong where β is 3 or more.

>>> C3A(block=2).change(k=np.array([[[2., 4.]]]))
array([[1., 2.],
       [2., 1.]])
"""

import math
from dataclasses import dataclass
from typing import Any

from minipeft.declare import QUERY_VALUE, Method, choice, circulant, count, either, normal, requires, trained, uniform
from minipeft.engine import ops

OTHER = either("start == 'kaiming'", uniform("in"), either("start == 'normal'", normal()))
START = either("start == 'xavier'", uniform("in + out", gain=6**0.5), OTHER)


@dataclass(frozen=True)
class C3A(Method):
    """A change of circulant blocks."""

    name = "c3a"
    targets: str = QUERY_VALUE
    takes = "linears"
    block: int = count(
        256, small=lambda a: math.gcd(a.d, a.heads * a.dh, a.kv * a.dh), tried=lambda a: math.gcd(a.d, 4)
    )  # β
    start: str = choice("xavier", "kaiming", "normal", "zero", varied=False)
    fits = requires("out % block == in % block == 0", "block must divide {out} and {in}, both widths, found {block},")
    k = trained("out / block", "in / block", "block", start=START)

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with k = 0."""
        return self.start == "zero"

    def change(self, *, k: Any) -> Any:
        P, Q, n = k.shape
        return ops.reshape(ops.transpose(circulant(k), axes=(0, 2, 1, 3)), shape=(P * n, Q * n)) / (Q * n)
