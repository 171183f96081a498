"""No file but a method's own names it: the method, its files in interop and conformance, and what is generated."""

import re
from pathlib import Path

import pytest

from minipeft.method import METHODS, load_methods

load_methods()
PACKAGE = Path(__file__).parents[1] / "minipeft"
OURS = {name: cls for name, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods.")}
GENERAL = {"full", "poly", "invertible"}  # words of other meanings too: they count in quotes alone


# Files that name methods still. A file leaves this list for good.
def pattern():
    """What names a method: its name, with hyphens too, the name of its class, or its module."""
    words = {w for name, cls in OURS.items() for w in (name, name.replace("_", "-"), cls.__name__)}
    plain = sorted((w for w in words if w.lower() not in GENERAL), key=len, reverse=True)
    return re.compile(
        rf"(?<!\w)(?:{'|'.join(map(re.escape, plain))})(?!\w)"
        rf"|([\"'`])(?:{'|'.join(sorted(GENERAL))})\1"
        r"|minipeft\.methods\.\w+"
    )


NAME = pattern()
NOT_MEANT = re.compile(
    r"""[\w./-]+[ ]\#\d+                       # an issue of somebody's repository
    |grad(?:=|":[ ]|",[ ])"full"               # a reading: how far a gradient goes
    |"\w*[\w-]*-lora==[\d.]+"                  # somebody's library
    |"[\w.-]+":[ ]"[\w.-]+/[\w.-]+"              # a project and its repository
    """,
    re.VERBOSE,
)


def may_name(path):
    """Whether a file is a method's own: of methods or interop, or a witness or mutants under the method's name."""
    parts = path.relative_to(PACKAGE).parts
    own = parts[:2] in {("conformance", "witnesses"), ("conformance", "mutants")} and path.stem in OURS
    return (
        own
        or parts[0] in ("methods", "interop")
        or parts[:2] in {("conformance", "cases"), ("conformance", "skeletons")}
    )


def named(text):
    """The names of methods in a text."""
    return sorted({m[0] for m in NAME.finditer(NOT_MEANT.sub("", text))})


def text_of(path):
    return path.read_text(encoding="utf-8")


FILES = sorted(p for p in PACKAGE.rglob("*.py") if not may_name(p))


def test_a_file_names_no_method():
    found = {path: named(text_of(path)) for path in FILES}
    assert not {str(path.relative_to(PACKAGE)): names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "text", ['x = "lora"', "# as LoRA-GA does", "prefix-tuning", "METHODS['full']", "`poly`", "LoRA's"]
)
def test_a_name_is_seen(text):
    assert named(text)


@pytest.mark.parametrize(
    "text",
    [
        "lora_bias",
        "explore",
        "np.full",
        "in full",
        "microsoft/LoRA #61; candle-lora #26",
        'dict(grad="full")',
        "polynomial",
    ],
)
def test_another_word_is_not(text):
    assert not named(text)
