"""Exercise 1: the way back through a normalisation (notebook 1).

    y = x / ‖x‖, row by row

`unit` returns y and, beside it, a closure that makes of g, the gradient of the loss by y, the gradient by x. Write the
closure. `norm` and `y` are at hand; no Jacobian is needed.

    python examples/exercises/check.py 1
"""

import numpy as np


def unit(x):
    """y (rows, n) of x (rows, n), and its vector-Jacobian product, in a tuple with one entry for each argument."""
    norm = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    y = x / norm

    def vjp(g):
        return None  # yours

    return y, (vjp,)
