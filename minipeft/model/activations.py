"""Activation functions of feed-forwards, by our names. Each is an op, or ops put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minipeft.engine import ops


def _between(x: Any, low: float, high: float) -> Any:
    return ops.minimum(ops.maximum(x, low), high)


def gelu_fast(x: Any) -> Any:
    """The tanh form of GELU with √(2/π) cut off after ten digits."""
    return 0.5 * x * (1 + ops.tanh(0.7978845608 * x * (1 + 0.044715 * x * x)))


ACTIVATIONS: dict[str, Callable] = {
    "gelu": ops.gelu,
    "gelu_tanh": ops.gelu_tanh,
    "relu": ops.relu,
    "silu": ops.silu,
    "tanh": ops.tanh,
    "gelu_fast": gelu_fast,
    "gelu_10": lambda x: _between(ops.gelu(x), -10.0, 10.0),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "mish": lambda x: x * ops.tanh(ops.softplus(x)),  # Misra 2019, https://arxiv.org/abs/1908.08681
    "hardswish": lambda x: x * _between(x + 3, 0.0, 6.0) / 6,
    "leaky_relu": lambda x: ops.maximum(x, 0.0) + 0.01 * ops.minimum(x, 0.0),
    "relu2": lambda x: ops.relu(x) * ops.relu(x),  # So et al. 2021, https://arxiv.org/abs/2109.08668
    "relu6": lambda x: _between(x, 0.0, 6.0),
    "sigmoid": ops.sigmoid,
    "sqrtsoftplus": lambda x: ops.sqrt(ops.softplus(x)),
    "linear": lambda x: x,
}
