"""What is generated of the `SPEC`s in docs/: the table of docs/format.md that says what stands in a file, and docs/peft.md.

`python -m minipeft.interop.peft.page [TESTS]` writes both anew, and the list of PEFT's tuners where PEFT is installed. `TESTS` is
the folder of tests with recorded adapters, the repository's if none is given.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from minipeft.checkpoints.files import write_bytes
from minipeft.conformance.cases import SHIPPED
from minipeft.interop.peft import options, tuners
from minipeft.interop.peft.registry import specs
from minipeft.interop.peft.spec import Spec

PAGE = Path(__file__).parents[3] / "docs" / "format.md"
START, END = "<!-- python -m minipeft.interop.peft.page -->\n", "<!-- end -->"


def table() -> str:
    """A row for every layout of the recorded files."""
    ids = [c["id"] for c in json.loads((SHIPPED / "index.json").read_text(encoding="utf-8"))["cases"]]
    recorded = {i.split(".")[0] for i in ids if i.endswith(".load.plain")}
    alike: dict[tuple[str, ...], list[str]] = {}
    every = specs()
    for name in every:
        if name in recorded:
            alike.setdefault(_row(every[name]), []).append(name)
    rows = [
        "| method | `peft_type` | names and shapes there | our letters | our settings: theirs |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*rows, *(f"| {', '.join(names)} | {' | '.join(row)} |" for row, names in alike.items())]) + "\n"


def _row(spec: Spec) -> tuple[str, ...]:
    keys = {**spec.keys, **spec.root_keys}
    told: dict[str, str] = {}
    for key in keys.values():
        told[key.suffix] = "; ".join(filter(None, (told.get(key.suffix), key.size)))
    names = ", ".join(f"`{suffix}` {size}" for suffix, size in told.items())
    settings = ", ".join(ours if ours == theirs else f"{ours}: `{theirs}`" for ours, theirs in spec.settings.items())
    return (
        f"`{spec.peft_type}`", "; ".join(filter(None, (names, spec.notes))), ", ".join(dict.fromkeys(keys)), settings
    )  # fmt: skip


def renewed(page: str) -> str:
    """The page with the table as it is now."""
    return re.sub(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: START + table() + END, page, count=1, flags=re.S)


def has_peft() -> bool:
    """Whether the PEFT that this is written for is installed."""
    try:
        return version("peft") == tuners.VERSION
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    write_bytes(PAGE, renewed(PAGE.read_text(encoding="utf-8")).encode())
    if has_peft():
        write_bytes(tuners.TUNERS, tuners.as_toml(tuners.tuners_of_peft()).encode())
    write_bytes(options.PAGE, options.page(Path(sys.argv[1]) if len(sys.argv) > 1 else options.TESTS).encode())
