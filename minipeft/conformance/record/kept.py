"""Cases into their folder: those of their methods, and nothing else changes there.

A case that says the same as before but for rounding keeps the bytes that it has; one that is released keeps them always.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints.files import place_folder, write_bytes
from minipeft.conformance.cases import FORMAT, Case, Damaged, _digest, _put, _read, encode, listing, path_of
from minipeft.conformance.record import released
from minipeft.conformance.record.tiny import same_rows, tiny_text
from minipeft.errors import Bad
from minipeft.method import method_class

INDEX = "index.json"


@dataclass(frozen=True)
class Written:
    """What was recorded: ids that are new, whose bytes changed, that are gone; and how many cases there are of the methods."""

    total: int
    new: Sequence[str]
    changed: Sequence[str]
    gone: Sequence[str]

    def __str__(self) -> str:
        told = dict(new=self.new, changed=self.changed, gone=self.gone)
        parts = [f"{len(ids)} {word}" for word, ids in told.items() if ids]
        return f"{self.total} cases: {', '.join(parts) or 'all as they were'}"


def write(
    cases: Sequence[Case], folder: Path, few: Sequence[Mapping[str, Any]] = (), *,
    methods: Collection[str] | None = None, correct: str = "",
) -> Written:  # fmt: skip
    """Write all cases of some methods, by default of those that these are of, their rows of the index, and their `few` of the tiny tier.

    Files of other methods keep their bytes, and so do their rows. `correct` says why released cases change, and is kept on their
    lines of the list. Raises `Bad`, and writes nothing, if two have one name, if a released case would change or go and `correct`
    says nothing, and for the id of one that was withdrawn.
    """
    own = {c.method for c in cases} if methods is None else {*methods}
    made = {case.id: case for case in cases}
    tiny = {row["id"]: row for row in few}
    if len(made) + len(tiny) < len(cases) + len(few):
        ids = sorted([*(c.id for c in cases), *(row["id"] for row in few)])
        raise Bad(f"two cases are named {next(a for a, b in pairwise(ids) if a == b)}")
    list_ = released.read(folder)
    there = {i: released.lying(folder / path_of(i)) for i in _ids(folder, own)}
    held = {i: _held(case, folder, there.get(i, {}), list_.get(i)) for i, case in made.items()}
    rows = {row["id"]: row for row in released.tiny_rows(folder)}
    few_there = {i: row for i, row in rows.items() if released.of(i) in own}
    few_held = {i: few_there[i] if i in few_there and same_rows(few_there[i], row) else row for i, row in tiny.items()}
    was = {i: released.digest(files) for i, files in there.items()}
    was |= {i: released.tiny_digest(row) for i, row in few_there.items()}
    now = {i: released.digest(files) for i, files in held.items()}
    now |= {i: released.tiny_digest(row) for i, row in few_held.items()}
    list_ = _list(list_, own, now, " ".join(correct.split()))
    index = _index(folder, own, held)
    folder.mkdir(parents=True, exist_ok=True)
    for i, files in held.items():
        if there.get(i) != files:
            _place(files, folder / path_of(i))
    gone = sorted(was.keys() - now.keys())
    for i in gone:
        _remove(folder, i)
    done = {**index, released.NAME: released.text(list_)} if list_ else index
    every = {i: row for i, row in rows.items() if released.of(i) not in own} | few_held
    if every or rows:
        done[released.TINY] = tiny_text(every.values())
    for name, data in done.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != data:
            write_bytes(folder / name, data)
    changed = sorted(i for i in now.keys() & was.keys() if now[i] != was[i])
    return Written(len(now), sorted(now.keys() - was.keys()), changed, gone)


def _ids(folder: Path, methods: Collection[str]) -> list[str]:
    """The cases of some methods that lie in a folder."""
    found = (p for method in sorted(methods) for p in sorted((folder / method).glob("*/*")) if p.is_dir())
    return [p.relative_to(folder).as_posix().replace("/", ".") for p in found]


def _held(case: Case, folder: Path, there: dict[str, bytes], entry: released.Entry | None) -> dict[str, bytes]:
    """The files that a case shall have: those that it has, if they say the same but for rounding and are those released."""
    read = case.recorded if case.folder == folder / path_of(case.id) else {}  # from here: another's are not made again
    files = dict(read or encode(case))
    if there and (entry is None or released.digest(files) != entry.digest):
        with contextlib.suppress(Damaged):
            if there == files or same(_read(folder / path_of(case.id), np.float64), case):
                return there
    return files


def _list(list_: released.Entries, own: Collection[str], now: Mapping[str, str], why: str) -> released.Entries:
    """The list of what is released as it is then. Raises `Bad` for what may not be."""
    wrong, out = [], dict(list_)
    for name, it in list_.items():
        if released.of(name) not in own or now.get(name, released.WITHDRAWN) == it.digest:
            continue
        if it.digest == released.WITHDRAWN:
            raise Bad(f"{name}: this id was withdrawn ({it.why or 'released.txt'}) and is not used again")
        wrong.append(f"{name} is released and would {'change' if name in now else 'go'}")
        out[name] = released.Entry(now.get(name, released.WITHDRAWN), "; ".join(filter(None, (it.why, why))))
    if wrong and not why:
        more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
        raise Bad(f"{wrong[0]}{more}: give it a new variant, or say why it was wrong: --correct REASON")
    return out


def _index(folder: Path, own: Collection[str], held: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """The index, in which the rows of other methods are as they were, and the schema. Raises `Damaged`."""
    rows: list[dict[str, str]] = []
    if (path := folder / INDEX).exists():
        data = path.read_bytes()
        try:
            rows = json.loads(data)["cases"]
        except (ValueError, KeyError, TypeError) as why:
            raise Damaged(f"{path}: expected an index of format {FORMAT}: {why}") from None
        if listing(rows)[INDEX] != data:
            raise Damaged(f"{path}: its rows are not as they were written, and would not keep their bytes")
        rows = [row for row in rows if released.of(row["id"]) not in own]
    rows += [dict(id=i, path=path_of(i), sha256=_digest(files["case.json"])) for i, files in held.items()]
    return listing(sorted(rows, key=lambda row: row["id"]))


def _place(files: Mapping[str, bytes], where: Path) -> None:
    """A case's folder, whole or as it was. Raises `Bad` if it cannot be written."""
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{where.name}.", dir=where.parent) as scratch:
            _put(files, Path(scratch) / where.name)
            place_folder(Path(scratch) / where.name, where)
    except OSError as why:
        raise Bad(f"{where}: cannot be written: {why.strerror or why}") from None


def _remove(folder: Path, name: str) -> None:
    """Take a case away, and the folders that hold nothing then. One of the tiny tier is no folder."""
    path = folder / path_of(name)
    if name.startswith("tiny.") or not path.exists():
        return
    shutil.rmtree(path)
    for above in (path.parent, path.parent.parent):
        with contextlib.suppress(OSError):
            above.rmdir()


NEAR = 2.0**-40  # of the largest: singular vectors are exact to u over their gap, and what was drawn anew is off by 1


def same(one: Case, other: Case) -> bool:
    """Whether two recordings of a case, the first from its folder, differ in nothing but rounding in another order.

    Numbers that go in may be near each other where a decomposition made them; what is wanted may then differ by as much times `cond`.
    """
    usual = {f.name: f.default for f in dataclasses.fields(method_class(other.method))}  # of settings that came later

    def fits(name: str, data: bytes) -> bool:
        path = one.folder / "adapter" / name if one.folder is not None else None
        there = path.read_bytes() if path is not None and path.exists() else b""
        if not name.endswith(".json") or not there:
            return len(there) == len(data)
        was, now = json.loads(there), json.loads(data)
        return {k: now.get(k) for k in was} == was  # what is written beside by now says what the first leaves unsaid

    def told(text: bytes) -> Any:
        about = json.loads(text)
        shapes = {k: t["shape"] for k, t in about["want"].items()}
        config = {k: v for k, v in about["config"].items() if k in one.config or v != usual.get(k)}
        beside = dict(digests=sorted(about["digests"]), equation="", witnesses=[])
        return {**about, "want": shapes, "config": config, **beside}

    if one.folder is None or told((one.folder / "case.json").read_bytes()) != told(encode(other)["case.json"]):
        return False
    off = max(
        (float(abs(other.inputs[k] - v).max(initial=0) / abs(v).max(initial=1)) for k, v in one.inputs.items()),
        default=0.0,
    )
    return (
        {*one.witnesses} <= {*other.witnesses}
        and all(fits(name, data) for name, data in other.files.items())
        and off <= NEAR
        and all((abs(other.want[k] - v) <= (8 * 2.0**-53 + off) * one.cond[k]).all() for k, v in one.want.items())
        and all(abs(other.cond[k] - v) <= 1e-6 * v for k, v in one.cond.items())
    )
