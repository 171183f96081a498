"""RandLoRA: Full-rank Parameter-efficient Fine-tuning of Large Models. Albert et al. 2025, https://arxiv.org/abs/2502.00987

    W' = W + s Σ_b B_b Λ_b A Γ_b,    b = 1 … n,    s = α/r
    m = min(in, out),    n = ⌈m/r⌉

with Λ_b (r) and Γ_b (m) diagonal and trained, A (r, m) and B_b (max(in, out), r) random and frozen; the sum is transposed where
in > out. All adapted matrices share A and the B_b, whose first columns and rows they take. n products of rank r have full rank.

    dense         uniform numbers
    sparse        −1, 0, 1 with 1/6, 2/3, 1/6;  very_sparse: with 1/2√m, 1 − 1/√m, 1/2√m       each A and B over its deviation

Merges   exactly: W' is an ordinary weight.
Differs  In HF peft, as here, the n r columns of the B_b, block by block, meet the rows of Λ_b A Γ_b in the order of A's rows,
         and of b within one: others than in the paper's sum, just as random. Dense numbers are drawn and divided in bfloat16
         (HF peft draws them in float16 where a GPU has no bfloat16, which are others). Γ starts as 1/max(n, m).

>>> A, B = np.array([[[1., 2.]]]), np.array([[[1.], [5.]], [[3.], [7.]]])
>>> two = dict(Lambda=np.array([[1., 10.]]), Gamma=np.array([[1., 1.], [1., 0.]]))
>>> RandLoRA(r=1, alpha=1.).weight(np.zeros((2, 2)), A=A, B=B, **two)  # (1, 3) (1, 2)ᵀ + 10 (5, 7) (1, 0)ᵀ
array([[51.,  2.],
       [73.,  6.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    QUERY_VALUE, Method, choice, count, found, free, inverse, size, stored, trained, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.torch_random import TorchGenerator, narrow


def pair(method: Any, facts: Any) -> dict[str, Any]:
    """A and B of the widest matrices, drawn in this order, and divided by their deviation."""
    random, r = TorchGenerator(method.seed), method.r
    m, most = sorted((facts["in_max"], facts["out_max"]))
    shapes = dict(A=(r, 1, m), B=(most, -(-m // r), r))
    if method.bases == "dense":
        A = random.narrow_uniform(shapes["A"], -(m**-0.5), m**-0.5)
        B = [random.narrow_uniform((most, 1, r), -(r**-0.5), r**-0.5) for _ in range(-(-m // r))]
        drawn = dict(A=A, B=np.concatenate(B, axis=1))
        return {k: narrow(a / narrow(np.float32(a.std(ddof=1, dtype=float)))) for k, a in drawn.items()}
    p = 1 / (2 * (3 if method.bases == "sparse" else m**0.5))
    uniform = {k: random.uniform(shape) for k, shape in shapes.items()}
    signs = {k: (u > 1 - p).astype(np.float32) - (u < p) for k, u in uniform.items()}
    return {k: a / np.float32(a.std(ddof=1, dtype=float)) for k, a in signs.items()}


@dataclass(frozen=True)
class RandLoRA(Method):
    """Many low-rank products of random matrices, scaled by trained vectors."""

    name = "randlora"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(32, small=4, tried=3)
    alpha: float = free(640.0, small=8.0, tried=7.0)
    bases: str = choice("dense", "sparse", "very_sparse")
    seed: int = free(0)
    dropout: float = within("[0, 1)", 0.0)

    m, most = size("min(in_max, out_max)"), size("max(in_max, out_max)")
    n = size("(min(in, out) + r - 1) / r")
    A = stored("r", "1", "m", start=found(pair, "see above, from `seed`"), shared=True)
    B = stored("most", "(m + r - 1) / r", "r", start=A.start, shared=True)
    Lambda = trained("r", "n")
    Gamma = trained("n", "min(in, out)", start=inverse("max(n, min(in, out))"))

    def weight(self, W: Any, *, A: Any, B: Any, Lambda: Any, Gamma: Any) -> Any:
        n, m = Gamma.shape
        rows = ops.reshape(Lambda[:, :, None] * A[:, :, :m] * Gamma, shape=(-1, m))
        columns = ops.reshape(B[: max(W.shape), :n], shape=(max(W.shape), -1))
        change = self.alpha / self.r * (columns @ rows)
        return W + (change if W.shape[1] == m else ops.swapaxes(change))
