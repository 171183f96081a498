"""Arrays on ViT's patches: PEFT has them as kernels of a convolution (…, channels, side, side), we as rows over a patch (…, channels · side²).

Each function is a `Key` there; what a tuner has of them stands in its `Spec.patches`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.spec import Key, vector
from minipeft.method import Site
from minipeft.model.arch import Arch

SIDES = ("patch", "patch")


def _rows(a: Any, arch: Arch) -> Any:
    return a.reshape(len(a), -1)


def _kernels(a: Any, arch: Arch) -> Any:
    return a.reshape(len(a), -1, arch.patch, arch.patch)


def kernel(suffix: str) -> Key:
    """(n, channels, side, side) there, (n, channels · side²) here."""
    return Key(suffix, _rows, _kernels, (None, None, *SIDES))


def core(suffix: str) -> Key:
    """(r, r, side, side) there, (r, r, side²) here: the core of a Tucker decomposition."""
    return Key(
        suffix,
        lambda a, arch: a.reshape(*a.shape[:2], -1),
        lambda a, arch: a.reshape(*a.shape[:2], arch.patch, arch.patch),
        (None, None, *SIDES),
    )


def point(suffix: str) -> Key:
    """(n, m, 1, 1) there, (n, m) here: a convolution of single points."""
    return Key(suffix, _rows, lambda a, arch: a[..., None, None], (None, None, 1, 1))


def channels(suffix: str, holds: Callable[[Any, Site], bool] = lambda a, site: True) -> Key:
    """(1, n, 1, 1) there, (n) here: a number for each channel that goes in, or comes out."""
    return Key(suffix, vector, lambda a, arch: a.reshape(1, -1, 1, 1), (1, None, 1, 1), holds=holds)


# --- LyCORIS's methods, which may have a kernel as a Tucker decomposition ------------------------------------------------


def kernel_read(config: Config, arch: Arch) -> Config:
    """Our setting, of their configuration."""
    return dict(kernel="tucker" if config["use_effective_conv2d"] else "flat")


def kernel_written(m: Any) -> Config:
    """Their field, of our method."""
    return dict(use_effective_conv2d=m.kernel == "tucker")


def is_tucker(config: Config, arch: Arch) -> bool:
    """Whether a kernel is one: not where its only position is one point."""
    return bool(config.get("use_effective_conv2d")) and arch.patch > 1
