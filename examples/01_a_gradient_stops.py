"""A gradient stops at a frozen weight: what is frozen is a plain array, and nothing is kept for it."""

import numpy as np

from minipeft.engine import Tensor, ops, value_and_grad

rng = np.random.default_rng(0)
x, W = rng.standard_normal((4, 3)), rng.standard_normal((2, 3))  # frozen
theta = dict(A=rng.standard_normal((1, 3)), B=np.zeros((2, 1)))  # trained


def loss(t):
    y = ops.linear(x, W + t["B"] @ t["A"])
    return ops.mean(y * y)


value, grads = value_and_grad(loss)(theta)
print(f"loss {float(value):.4f}; gradients of {sorted(grads)}, and of nothing else")
print("a frozen product is no Tensor:", not isinstance(ops.linear(x, W), Tensor))
print("A has no gradient while B is 0:", not grads["A"].any())
