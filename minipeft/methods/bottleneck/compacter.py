"""Compacter: Efficient Low-Rank Hypercomplex Adapter Layers. Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647

    a' = a + phm(f(phm(a; D)); U)              (paper, §3; read from the residual sum with reads="sum": Compacter++, at "mlp.out")
    phm(x; L) = x Σ_i R_i ⊗ (Ll_i Lr_i) + b    (eqs. 4 to 6; the n rules R_i are shared by all layers, down and up)

Merges   no: f is not linear.
Differs  Starts are AdapterHub's: rules N(0, 0.0001²), factors Xavier-normal slice by slice. The paper trains the layer norms too.

>>> one = np.ones((2, 1, 1))
>>> Compacter(n=2).phm(np.array([[3., 5.]]), np.array([[[1., 0.], [0., 2.]]] * 2) / 2, one, one, np.array([0., 1.]))
array([[ 3., 11.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, Method, at_least, choice, count, normal, requires, size, trained, xavier
from minipeft.engine import ops
from minipeft.model.activations import ACTIVATIONS


@dataclass(frozen=True)
class Compacter(Method):
    """A bottleneck whose matrices are sums of Kronecker products with shared rules."""

    identity = False
    targets: str = "attn.out cross.out mlp.out"
    takes = "vectors"
    n: int = count(4, small=2, tried=lambda a: 4 if a.d % 4 == 0 else 2)
    rank: int = count(1, tried=2)
    reduction: float = at_least(1 / 64, 32.0, small=4.0, tried=lambda a: a.d / 4)  # d / m
    f: str = choice(*ACTIVATIONS, default="gelu", varied=False)
    reads: str = choice("output", "sum")
    m = size("max(1, int(d // reduction))")
    fits = requires("d % n == 0 and m % n == 0", "n must divide the widths {d} and {m}, found {n},")
    R = trained("n", "n", "n", start=normal(1e-4), shared=True)
    Dl, Dr = (trained("n", s, t, start=xavier(s, t)) for s, t in (("d / n", "rank"), ("rank", "m / n")))
    Ul, Ur = (trained("n", s, t, start=xavier(s, t)) for s, t in (("m / n", "rank"), ("rank", "d / n")))
    bd, bu = trained("m"), trained("d")

    def phm(self, x: Any, R: Any, left: Any, right: Any, b: Any) -> Any:
        """x (…, n s) by Σ_i R_i ⊗ (left_i right_i), with left (n, s, rank) and right (n, rank, t); b (n t)."""
        (n, s, _), t = left.shape, right.shape[2]
        blocks = ops.transpose(ops.reshape(R, shape=(n, n * n))) @ ops.reshape(left @ right, shape=(n, s * t))
        W = ops.transpose(ops.reshape(blocks, shape=(n, n, s, t)), axes=(0, 2, 1, 3))
        return x @ ops.reshape(W, shape=(n * s, n * t)) + b

    def apply(self, a: Any, here: Here, *, R: Any, Dl: Any, Dr: Any, bd: Any, Ul: Any, Ur: Any, bu: Any) -> Any:
        h = self.phm(a if self.reads == "output" else here.combine(a), R, Dl, Dr, bd)
        return a + self.phm(ACTIVATIONS[self.f](h), R, Ul, Ur, bu)
