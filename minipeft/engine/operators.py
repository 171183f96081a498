"""What `+`, `@`, `x[i]` and `.sum()` mean on a Tensor: the ops of these names."""

from __future__ import annotations

import numbers
from typing import Any

from minipeft.engine import ops
from minipeft.engine.tensor import Tensor


def _operand(x: Any) -> Any:
    """Numbers, NumPy's too, become Python's, so that they never widen a Tensor's dtype; arrays are left as they are."""
    return float(x) if isinstance(x, numbers.Real) else x


def give() -> None:
    T: Any = Tensor
    both = {"add": ops.add, "sub": ops.sub, "mul": ops.mul, "truediv": ops.div, "matmul": ops.matmul}

    def either_way(f: Any) -> tuple[Any, Any]:
        return lambda self, other: f(self, _operand(other)), lambda self, other: f(_operand(other), self)

    for name, f in both.items():
        for called, operator in zip((f"__{name}__", f"__r{name}__"), either_way(f), strict=True):
            setattr(T, called, operator)
    T.__neg__ = ops.neg
    T.__abs__ = ops.absolute
    T.__pow__ = lambda self, p: ops.power(self, p=p)
    T.__getitem__ = lambda self, index: ops.getitem(self, index=index)
    T.T = property(lambda self: ops.transpose(self))
    T.sum = lambda self, axis=None, keepdims=False: ops.sum(self, axis=axis, keepdims=keepdims)
    T.mean = lambda self, axis=None, keepdims=False: ops.mean(self, axis=axis, keepdims=keepdims)
    T.reshape = lambda self, *shape: ops.reshape(self, shape=shape[0] if isinstance(shape[0], tuple) else shape)
    T.swapaxes = lambda self, a, b: ops.swapaxes(self, a=a, b=b)
    T.transpose = lambda self, *axes: ops.transpose(self, axes=axes[0] if axes and isinstance(axes[0], tuple) else axes)


give()
