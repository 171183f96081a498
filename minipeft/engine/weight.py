"""How a base weight is held: as an array, or as a `Weight`, which stands for one.

What it is held in is asked here alone. `widened(W)` is the array, `factor(W)` what a product takes, which widens what is held
in fewer bits each time, forward and backward, and keeps none of it, `form(W)` the name of the form: "" of an array, "bfloat16", "nf4".
`again(x, W)` holds new numbers as W is held.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Weight:
    """Stands for a read-only array of `shape` and `dtype`."""

    form: ClassVar[str]
    quantised: ClassVar[bool] = False
    shape: tuple[int, ...]
    dtype: Any

    def dequantize(self) -> Any:
        """The array that it stands for."""
        raise TypeError(f"{type(self).__name__} does not say what array it stands for")

    def to_arrays(self) -> dict[str, Any]:
        """All that is held, as arrays by name, for files and digests."""
        raise TypeError(f"{type(self).__name__} does not say what it holds")

    def factor(self) -> Any:
        """What a product with another array takes: itself, or an array that is there."""
        return self

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        return self.dequantize()[index]

    def again(self, x: Any) -> Any:
        """Other numbers, held in this form where that loses nothing but a rounding."""
        return x


def widened(W: Any) -> Any:
    """The array that W stands for, or W itself."""
    return W.dequantize() if isinstance(W, Weight) else W


def factor(W: Any) -> Any:
    """W as products take it."""
    return W.factor() if isinstance(W, Weight) else W


def form(W: Any) -> str:
    """What W is held in: "" an array, "bfloat16", "nf4"."""
    return W.form if isinstance(W, Weight) else ""


def quantised(W: Any) -> bool:
    """Whether it is held in codes, which are (out, in) whatever a family's files have."""
    return isinstance(W, Weight) and W.quantised


def again(x: Any, W: Any) -> Any:
    """New numbers, held as W is: in bfloat16 rounded once; in full where W was quantised."""
    return W.again(x) if isinstance(W, Weight) else x


def held_arrays(W: Any) -> dict[str, Any]:
    """All that is held, as arrays by name."""
    return W.to_arrays() if isinstance(W, Weight) else {"": W}
