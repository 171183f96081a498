"""Exercise 4: detach the right thing (notebook 4).

    V = W + s B A,    W' = diag(m / ‖V‖) V,    ‖·‖ row by row

with W (out, in), A (r, in), B (out, r), m (out). A, B and m may be Tensors: `@`, `+`, `*`, `/` and `[:, None]` work on them as
on arrays, and so does `ops.norm(x, axis=…)`. The gradient must not run through the norm: `stop_gradient(x)` is x as a constant.

    python examples/exercises/check.py 4
"""

from minipeft.engine import ops, stop_gradient


def weight(W, A, B, m, s):
    """W', (out, in)."""
    V = W + s * (B @ A)
    return V * (m / stop_gradient(ops.norm(V, axis=1)))[:, None]
