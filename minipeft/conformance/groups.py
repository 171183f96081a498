"""The seven groups of checks, which verdicts show apart: a policy on files that is not as wanted is no wrong mathematics."""

from __future__ import annotations

from minipeft.errors import Bad, near

GROUPS = {
    "forward": ("forward", "embedding", "dropout", "quantize", "dequantize"),
    "gradient": ("grad",),
    "merge": ("delta", "merge", "unmerge", "merge_bfloat16", "unmerge_bfloat16"),
    "files": ("load", "save"),
    "combine": ("combine",),
    "init": ("init", "start", "draw"),
    "train": ("train", "fit"),
}
GROUP_OF = {check: group for group, checks in GROUPS.items() for check in checks}
LETTERS = dict(zip(GROUPS, "FGMLCIT", strict=True))


def group_of(check: str) -> str:
    """The group of a check. Raises `Bad` for one that belongs to none."""
    if check not in GROUP_OF:
        raise Bad(f"check {check!r}: expected one of {', '.join(GROUP_OF)}{near(check, GROUP_OF)}")
    return GROUP_OF[check]
