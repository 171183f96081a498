"""Cases into their folder: one that says the same as before but for rounding keeps the bytes that it was released with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case, _digest, _put, _read, encode, listing
from minipeft.errors import Bad


def write(cases: list[Case], folder: Path) -> None:
    """Write cases and their index into a folder, whose other files stay. Raises `Bad` if two have one name.

    A case that lies there already, and says the same but for rounding, keeps its bytes: what was released does not change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index: list[dict[str, str]] = []
    for case in sorted(cases, key=lambda c: c.id):
        where = f"{case.method}/{case.check}/{case.variant}"
        if any(i["path"] == where for i in index):
            raise Bad(f"two cases are named {case.id}")
        if case.folder != folder / where and not (
            (folder / where).exists() and same(_read(folder / where, np.float64), case)
        ):
            _put(encode(case), folder / where)
        digest = _digest((folder / where / "case.json").read_bytes())
        index.append(dict(id=case.id, path=where, sha256=digest))
    for name, data in listing(index).items():
        (folder / name).write_bytes(data)


def same(one: Case, other: Case) -> bool:
    """Whether two recordings of a case, the first from its folder, differ in nothing but rounding in another order."""

    def fits(name: str, data: bytes) -> bool:
        path = one.folder / "adapter" / name if one.folder is not None else None
        there = path.read_bytes() if path is not None and path.exists() else b""
        return there == data if name.endswith(".json") else len(there) == len(data)

    def told(text: bytes) -> Any:
        about = json.loads(text)
        shapes = {k: t["shape"] for k, t in about["want"].items()}
        return {**about, "want": shapes, "digests": sorted(about["digests"])}

    return (
        one.folder is not None
        and told((one.folder / "case.json").read_bytes()) == told(encode(other)["case.json"])
        and all(fits(name, data) for name, data in other.files.items())
        and all((abs(other.want[k] - v) <= 8 * 2.0**-53 * one.cond[k]).all() for k, v in one.want.items())
        and all(abs(other.cond[k] - v) <= 1e-6 * v for k, v in one.cond.items())
        and all(
            (abs(other.inputs[k] - v) <= 64 * 2.0**-53 * abs(v).max(initial=1)).all() for k, v in one.inputs.items()
        )
    )
