"""Tensors, ops with their vector-Jacobian products, and the check that they are right. Knows nothing of models."""

from minipeft.engine import fast, operators, ops
from minipeft.engine.backend import use, xp
from minipeft.engine.gradcheck import gradcheck
from minipeft.engine.tensor import OPS, Tensor, gradients_flow, stop_gradient, value, value_and_grad

__all__ = [
    "OPS",
    "Tensor",
    "fast",
    "gradcheck",
    "gradients_flow",
    "operators",
    "ops",
    "stop_gradient",
    "use",
    "value",
    "value_and_grad",
    "xp",
]
