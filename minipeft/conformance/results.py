"""What became of one recorded case under one implementation, and its form on a line of JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minipeft.conformance.groups import group_of
from minipeft.conformance.schema import ID, TEXT, fault
from minipeft.errors import Bad
from minipeft.limits import WORDS
from minipeft.plain import escaped
from minipeft.shown import shortly

TEXTS = ("implementation", "version", "id", "outcome", "tensor", "dtype", "reason", "url", "expected_outcome")
NUMBERS = ("expected", "found", "ratio", "relative")
OUTCOMES = ("PASS", "READING", "FAIL", "ERROR", "SKIP", "N/A")
ROW = {
    "type": "object",
    "required": ["id", "outcome", "worst", "diagnosis", *NUMBERS],
    "properties": {
        **dict.fromkeys(TEXTS, TEXT),
        "id": ID,
        "outcome": {"enum": list(OUTCOMES)},
        "seconds": {"type": "number"},
        "readings": {"type": "object", "additionalProperties": TEXT},
        "diagnosis": {"type": "array", "items": TEXT},
    },
}


@dataclass(frozen=True)
class Result:
    """One case judged: the outcome, the element furthest off, and why."""

    implementation: str
    version: str
    id: str  # METHOD.CHECK.VARIANT
    outcome: str
    tensor: str = ""
    worst: tuple[int, ...] | None = None
    expected: float | None = None
    found: float | None = None
    ratio: float | None = None  # err / (u · cond)
    relative: float | None = None  # of the largest expected value
    dtype: str = ""
    seconds: float = 0.0
    reason: str = ""
    url: str = ""
    readings: Mapping[str, str] = field(default_factory=dict)
    diagnosis: tuple[str, ...] = ()  # mutants and options whose output it equals
    expected_outcome: str = ""  # of an expectations file
    absent: bool = False  # the implementation does not say that it has the method

    def __post_init__(self) -> None:
        """Text of programs and files holds no halves of characters, which no file could be written with."""
        for name in TEXTS:
            text = getattr(self, name)
            if not text.isascii():
                object.__setattr__(self, name, "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text))

    @property
    def method(self) -> str:
        return self.id.split(".")[0]

    @property
    def check(self) -> str:
        return self.id.split(".")[1]

    @property
    def variant(self) -> str:
        return self.id.split(".", 2)[2]


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def address(url: str) -> str:
    """The address of a page, '' for anything else: a link in a report leads to the web, or to the page of deviations."""
    fits = len(url) <= WORDS and re.fullmatch(r"(https?://|deviations\.md#)[!#-'*-;=?-Z_a-z~]+", url)
    return url if fits else ""


def to_lines(results: Iterable[Result]) -> str:
    """A JSON array, one result a line. What would do something to a terminal is spelt out."""
    rows = [json.dumps({k: _plain(v) for k, v in dataclasses.asdict(r).items()}, ensure_ascii=False) for r in results]
    return escaped("[\n" + ",\n".join(rows) + "\n]\n")


def from_lines(text: str) -> list[Result]:
    """The results of `to_lines`. Raises `Bad` for other text."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as why:
        raise Bad(f"expected results of minipeft verify as JSON: {why}") from None
    if not isinstance(rows, list):
        raise Bad(f"expected results of minipeft verify, a JSON array, found {type(rows).__name__}")
    out = []
    for n, row in enumerate(rows, 1):
        if said := fault(row, ROW):
            raise Bad(f"result {n}: expected one of minipeft verify: {said}")
        try:
            for k in NUMBERS:
                row[k] = None if row[k] is None else float(row[k])
            row["seconds"] = float(row.get("seconds", 0.0))
            worst = None if row["worst"] is None else tuple(row["worst"])
            more = dict(worst=worst, diagnosis=tuple(row["diagnosis"]), absent=row.get("absent") is True)
            out.append(Result(**row | more))
            group_of(out[-1].check)
        except (ValueError, TypeError, KeyError, OverflowError) as why:
            raise Bad(f"result {n}: expected one of minipeft verify: {shortly(str(why))}") from None
    return out
