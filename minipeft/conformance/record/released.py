"""Which cases are released: `released.txt` in their folder has a line for each, sorted: its id and a digest of all its files' digests.

A released case never changes. One that was wrong is corrected, or withdrawn, for a reason that stands on its line; the id of a
withdrawn one is never used again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.conformance import cases as files
from minipeft.conformance.cases import Damaged
from minipeft.errors import Bad

NAME, TINY = "released.txt", "tiny.json"
WITHDRAWN = "withdrawn"  # in the place of a digest
LINE = re.compile(r"(?P<id>\S+) (?P<digest>[0-9a-f]{64}|withdrawn)(?: (?P<why>\S.*))?")


@dataclass(frozen=True)
class Entry:
    """A line of the list: the digest, and why the case was corrected or withdrawn, '' if it was not."""

    digest: str
    why: str = ""


Entries = dict[str, Entry]


def digest(data: Mapping[str, bytes]) -> str:
    """The digest of a case's files' digests, by their names."""
    lines = (f"{name} {hashlib.sha256(data[name]).hexdigest()}\n" for name in sorted(data))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tiny_digest(row: Mapping[str, Any]) -> str:
    """The same of a case of the tiny tier, which is one text."""
    return digest({TINY: json.dumps(row, sort_keys=True).encode()})


def lying(case: Path) -> dict[str, bytes]:
    """The files of a case by name, as they lie there; none if nothing does."""
    return {p.relative_to(case).as_posix(): p.read_bytes() for p in sorted(case.rglob("*")) if p.is_file()}


def digests(folder: Path) -> dict[str, str]:
    """{id: digest} of all cases that lie in a folder, whatever its index says, and of those of the tiny tier."""
    found = {p.parent.relative_to(folder).as_posix(): p.parent for p in folder.glob("*/*/*/case.json")}
    out = {path.replace("/", "."): digest(lying(case)) for path, case in found.items()}
    return out | {row["id"]: tiny_digest(row) for row in tiny_rows(folder)}


def tiny_rows(folder: Path) -> list[dict[str, Any]]:
    """The cases of the tiny tier that a folder has."""
    path = folder / TINY
    return json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []


def read(folder: Path = files.SHIPPED) -> Entries:
    """The list of a folder, empty if it has none. Raises `Damaged` for lines that are none, not sorted, or of one id."""
    path = folder / NAME
    out: Entries = {}
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        if (found := LINE.fullmatch(line)) is None:
            raise Damaged(
                f"{path}, line {n}: expected ID DIGEST, and perhaps why it was corrected, found {line[:80]!r}"
            )
        if out and found["id"] <= next(reversed(out)):
            raise Damaged(
                f"{path}, line {n}: expected ids sorted, each once; {found['id']} follows {next(reversed(out))}"
            )
        out[found["id"]] = Entry(found["digest"], found["why"] or "")
    return out


def text(entries: Entries) -> bytes:
    """The file of a list."""
    lines = (f"{name} {it.digest} {it.why}".rstrip() + "\n" for name, it in sorted(entries.items()))
    return "".join(lines).encode()


def faults(folder: Path = files.SHIPPED) -> list[str]:
    """A line for every released case that is missing or altered, or that was withdrawn and is there."""
    there, out = digests(folder), []
    for name, it in read(folder).items():
        found = there.get(name, WITHDRAWN)
        if found != it.digest:
            what = "was withdrawn, and is there" if it.digest == WITHDRAWN else "was altered"
            out.append(f"{name}: released, and {'is missing' if found == WITHDRAWN else what}")
    return out


def appended(folder: Path, methods: Collection[str] = ()) -> tuple[Entries, list[str]]:
    """The list with what is not yet on it, of some methods or all, and what that is. Raises `Bad` if a released case is not as it was."""
    if wrong := faults(folder):
        raise Bad(wrong[0] + (f", and {len(wrong) - 1} more" if wrong[1:] else ""))
    entries = read(folder)
    new = {k: Entry(d) for k, d in digests(folder).items() if k not in entries and (not methods or of(k) in methods)}
    return entries | new, sorted(new)


def of(name: str) -> str:
    """The method of a case's id."""
    return name.removeprefix("tiny.").partition(".")[0]
