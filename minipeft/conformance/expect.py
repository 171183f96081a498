"""What an implementation is known to fail: files of expectations, and what is not as they say."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minipeft.checkpoints.files import existing, write_bytes
from minipeft.conformance.cases import Case
from minipeft.conformance.results import OUTCOMES, Result
from minipeft.conformance.schema import TEXT, fault
from minipeft.conformance.taking import contents
from minipeft.errors import Bad
from minipeft.limits import CASE_BYTES
from minipeft.plain import plain

INTEROP = Path(__file__).parents[1] / "interop"
FILE = {
    "type": "object",
    "properties": {
        "expect": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "outcome"],
                "properties": {
                    **dict.fromkeys(("id", "url", "reason", "dtype"), TEXT),
                    "outcome": {"enum": list(OUTCOMES)},
                },
            },
        }
    },
}


@dataclass(frozen=True)
class Expectation:
    """A known outcome of cases that a pattern names, with the address of a report."""

    id: str
    outcome: str
    url: str = ""
    reason: str = ""
    dtype: str = ""  # that it concerns; "": any

    def matches(self, r: Result) -> bool:
        """Whether it is about this result."""
        return fnmatch.fnmatchcase(r.id, self.id) and self.dtype in ("", r.dtype)


def read_expectations(path: Path) -> list[Expectation]:
    """An expectations file: TOML with [[expect]] tables of id, outcome, url, reason, and dtype. Raises `Bad` for another one."""
    try:
        found = tomllib.loads(contents(existing(path), CASE_BYTES).decode("utf-8"))
        if said := fault(found, FILE):
            raise TypeError(said)
        return [Expectation(**e) for e in found.get("expect", [])]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, RecursionError) as why:
        raise Bad(f"{path}: expected [[expect]] tables with id, outcome, url and reason: {why}") from None


def of_harness(name: str) -> list[Expectation]:
    """What the library of a harness that comes with minipeft is known to fail."""
    path = INTEROP / name.replace("-", "_") / "known.toml"
    return read_expectations(path) if path.exists() else []


def concerning(expected: Sequence[Expectation], cases: Iterable[Case]) -> list[Expectation]:
    """Those of them that some of the cases are named by."""
    ids = [c.id for c in cases]
    return [e for e in expected if fnmatch.filter(ids, e.id)]


def explained(results: Sequence[Result], known: Sequence[Expectation]) -> list[Result]:
    """The results, those that are known with the address and the reason."""
    out = []
    for r in results:
        e = next((e for e in known if e.matches(r) and r.outcome == e.outcome), None)
        if e is not None:
            reason = f"{r.reason}. {e.reason}" if e.reason and e.reason not in r.reason else r.reason
            r = dataclasses.replace(r, expected_outcome=e.outcome, url=e.url or r.url, reason=reason)
        out.append(r)
    return out


def write_expectations(path: Path, results: Iterable[Result], before: Sequence[Expectation] = ()) -> int:
    """The failures of a run as an expectations file; addresses and reasons known before are kept. Returns how many."""
    known = {e.id: e for e in before}
    out, n = [], 0
    for r in results:
        if r.outcome in ("FAIL", "ERROR"):
            e = next(
                (known[p] for p in known if fnmatch.fnmatchcase(r.id, p)), Expectation(r.id, r.outcome, "", r.reason)
            )
            lines = [
                f"{k} = {json.dumps(plain(v), ensure_ascii=False)}"
                for k, v in dict(id=r.id, outcome=r.outcome, url=e.url, reason=e.reason).items()
            ]
            out.append("\n".join(["[[expect]]", *lines, ""]))
            n += 1
    write_bytes(path, "\n".join(out).encode())
    return n


def surprises(results: Sequence[Result], expected: Sequence[Expectation]) -> list[str]:
    """What is expected and is not so, a line each: passes of what is expected to fail, expectations that match nothing."""
    said = []
    for r in results:
        match = [e for e in expected if e.matches(r)]
        if match and r.outcome in ("PASS", "READING"):
            told = match[0].url or match[0].reason
            said.append(f"{r.implementation} {r.id}: passes, but {match[0].outcome} is expected: {told}")
    used = {e.id for e in expected if any(fnmatch.fnmatchcase(r.id, e.id) for r in results)}
    return said + [f"expectation {e.id!r} matches no case" for e in expected if e.id not in used]


def unexpected(results: Sequence[Result], expected: Sequence[Expectation]) -> list[str]:
    """What is not as expected, a line each: failures, and `surprises`."""
    wrong = [r for r in explained(results, expected) if r.outcome in ("FAIL", "ERROR") and not r.expected_outcome]
    return [f"{r.implementation} {r.id}: {r.outcome}: {r.reason}" for r in wrong] + surprises(results, expected)
