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
KNOWN = [
    "__init__.py",
    "bench.py",
    "checkpoints/native.py",
    "checkpoints/peft_config.py",
    "checkpoints/peft_declared.py",
    "checkpoints/peft_io.py",
    "checkpoints/peft_specs.py",
    "cli/bench.py",
    "cli/check.py",
    "cli/common.py",
    "cli/compare.py",
    "cli/show.py",
    "cli/terminal.py",
    "cli/train.py",
    "cli/verify.py",
    "compare/outcomes.py",
    "conformance/new.py",
    "conformance/own.py",
    "conformance/peers/adapters.py",
    "conformance/peers/bitsandbytes.py",
    "conformance/peers/keras.py",
    "conformance/peers/litgpt.py",
    "conformance/peers/loralib.py",
    "conformance/peers/lycoris.py",
    "conformance/peers/mlx_lm.py",
    "conformance/peers/peft.py",
    "conformance/peers/torchtune.py",
    "conformance/record.py",
    "conformance/skeletons/jax/harness.py",
    "conformance/skeletons/mlx/harness.py",
    "conformance/skeletons/python/harness.py",
    "conformance/strategies.py",
    "errors.py",
    "method.py",
    "quantize.py",
    "run.py",
]


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
    """,
    re.VERBOSE,
)
FAMILIES = re.compile(r"^FAMILIES\b.*?^\}", re.MULTILINE | re.DOTALL)  # what compare trains unasked


def may_name(path):
    """Whether a file is a method's own: of methods or interop, or a witness or mutants under the method's name."""
    parts = path.relative_to(PACKAGE).parts
    own = parts[:2] in {("conformance", "witnesses"), ("conformance", "mutants")} and path.stem in OURS
    return own or parts[0] in ("methods", "interop") or parts[:2] == ("conformance", "cases")


def named(text):
    """The names of methods in a text."""
    return sorted({m[0] for m in NAME.finditer(NOT_MEANT.sub("", text))})


def text_of(path):
    text = path.read_text(encoding="utf-8")
    return FAMILIES.sub("", text) if path.name == "outcomes.py" else text


FILES = sorted(p for p in PACKAGE.rglob("*.py") if not may_name(p))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_names_no_method(path):
    found, known = named(text_of(path)), str(path.relative_to(PACKAGE)) in KNOWN
    assert known or not found, f"names {', '.join(found)}"
    assert found or not known, "names none any more: take it off the list"


def test_the_list_has_no_file_that_is_gone():
    assert set(KNOWN) <= {str(p.relative_to(PACKAGE)) for p in FILES}


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
