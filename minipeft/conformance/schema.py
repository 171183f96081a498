"""What case.json and index.json must be, as JSON Schema, and the few words of it that are used here, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from minipeft.limits import K_MOST

FORMAT = 1
ASKS = {
    "forward": "the outputs",
    "vjp": "the gradients of Σ g·output, g being the tensors named g.OUTPUT, by every input and every trained array",
    "delta": "the change of the weight, W' − W",
    "merge": "the merged weight and bias",
    "unmerge": "weight and bias after merging and taking the adapter out again",
    "combine": "the outputs of a weighted sum of adapters",
    "merge_bfloat16": "the merged weight and bias, the base being held in bfloat16, rounded once",
    "unmerge_bfloat16": "weight and bias after merging and taking the adapter out again, the base being held in bfloat16",
    "init": "the arrays as training starts",
    "draw": "the arrays as several adapters start, each drawn anew",
    "train": "the trained arrays after some steps of an optimiser on ½ Σ (output − target)², and the weight",
    "fit": "the same in the method's own training: with its learning rates and penalty, what it does between steps, and clipped gradients",
    "load": "the outputs with an adapter read from files of Hugging Face PEFT; or a refusal",
    "save": "the tensors of the file that Hugging Face PEFT would save, by their keys",
    "quantize": "the four-bit codes, two in a byte, and the constants of the blocks",
    "dequantize": "the weight that a block-wise quantised one stands for",
}
CLASSES = ("EXACT", "ROUND1", "COND", "SUBSPACE", "DRAWN", "REJECT", "SHAPES")

DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
ID = {"type": "string", "pattern": r"^[a-z0-9_]+\.[a-z0-9_]+\.[A-Za-z0-9_=-]+$"}
TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A recorded case of minipeft, format 1",
    "type": "object",
    "required": [
        "format", "id", "since", "method", "check", "variant", "ask", "place", "config", "readings", "options", "source", "equation",
        "tensors", "want", "tolerance", "witnesses", "flags", "seed", "digests",
    ],
    "properties": {
        "format": {"const": FORMAT},
        "id": ID,
        **dict.fromkeys(("since", "method", "check", "variant", "place", "source", "equation"), TEXT),
        "ask": {"enum": sorted(ASKS)},
        "config": {"type": "object"},
        "readings": {"type": "object", "additionalProperties": TEXT},
        "options": {"type": "object"},
        "tensors": {
            "type": "object",
            "additionalProperties": {
                "type": "object", "required": ["role", "shape", "dtype"],
                "properties": {
                    "role": {"enum": ["input", "base", "array", "stored", "cotangent", "target"]},
                    "shape": SHAPE,
                    "dtype": {"enum": ["float64", "int64", "int32", "uint8", "float32"]},
                },
            },
        },
        "want": {
            "type": "object",
            "additionalProperties": {
                "type": "object", "required": ["shape", "cond"],
                "properties": {"shape": SHAPE, "cond": {"type": "number", "minimum": 0}},
            },
        },
        "tolerance": {
            "type": "object", "required": ["class"],
            "properties": {"class": {"enum": list(CLASSES)}, "K": {"type": "number", "exclusiveMinimum": 0, "maximum": K_MOST}},
        },
        "witnesses": TEXTS,
        "flags": TEXTS,
        "seed": {"type": "integer"},
        "digests": {"type": "object", "required": ["in.safetensors"], "additionalProperties": DIGEST},
    },
}  # fmt: skip
INDEX: dict[str, Any] = {
    "type": "object",
    "required": ["format", "cases"],
    "properties": {
        "format": {"const": FORMAT},
        "cases": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "path", "sha256"],
                "properties": {"id": ID, "path": TEXT, "sha256": DIGEST},
            },
        },
    },
}
KINDS: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float)
}  # fmt: skip


def fault(value: Any, schema: Mapping[str, Any], at: str = "") -> str:
    """What is first found against a schema, on one line; '' if nothing is.

    >>> fault({"format": 1, "cases": [{"id": 7}]}, INDEX)
    'cases[0]: expected path'
    """

    def wrong(expected: str) -> str:
        return f"{at}: expected {expected}, found {short(value)}".removeprefix(": ")

    kind = schema.get("type")
    if kind and not _is(value, kind):
        return wrong(kind)
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):
        return wrong(str(schema["const"]))
    if "enum" in schema and value not in schema["enum"]:
        return wrong(f"one of {', '.join(schema['enum'])}")
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        return wrong(f"text like {schema['pattern']}")
    for word, fits in (
        ("minimum", lambda x, y: x >= y), ("exclusiveMinimum", lambda x, y: x > y), ("maximum", lambda x, y: x <= y),
    ):  # fmt: skip
        if word in schema and not fits(value, schema[word]):
            return wrong(f"a {kind} of {word} {schema[word]}")
    if isinstance(value, list) and "items" in schema:
        return next(filter(None, (fault(x, schema["items"], f"{at}[{i}]") for i, x in enumerate(value))), "")
    if isinstance(value, dict):
        if lost := [k for k in schema.get("required", ()) if k not in value]:
            return f"{at}: expected {lost[0]}".removeprefix(": ")
        known, rest = schema.get("properties", {}), schema.get("additionalProperties")
        inner = ((k, known.get(k, rest)) for k in value)
        below = (fault(value[k], s, f"{at}.{short(k)[1:-1]}".removeprefix(".")) for k, s in inner if s)
        return next(filter(None, below), "")
    return ""


def short(value: Any, most: int = 60) -> str:
    """A value in a message: its beginning, however long it is."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _is(value: Any, kind: str) -> bool:
    """JSON tells true from 1, and has no number that is not finite."""
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, KINDS[kind])
