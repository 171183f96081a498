"""`python -m minipeft.conformance.record [METHOD…] [--into FOLDER]`: all cases, or those of some methods."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from minipeft.conformance import cases as files
from minipeft.conformance.record import record
from minipeft.conformance.record.kept import write
from minipeft.conformance.record.tiny import same_tiny, tiny
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods, method_class


def main() -> None:
    """Record into a folder, by default the one that is shipped; cases of other methods stay as they are there."""
    parser = argparse.ArgumentParser(prog="python -m minipeft.conformance.record", description=main.__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="methods whose cases are made (default: all)")
    parser.add_argument("--into", type=Path, default=files.SHIPPED, metavar="FOLDER")
    given = parser.parse_args()
    try:
        for name in given.methods:
            method_class(name)
        made = record(given.methods)
        if given.methods and (index := given.into / "index.json").exists():
            there = {i["id"].split(".")[0] for i in json.loads(index.read_text(encoding="utf-8"))["cases"]}
            if others := sorted(there - set(given.methods)):
                made = [*files.load(given.into, others), *made]
    except Bad as why:
        raise SystemExit(f"record: {why}") from None
    write(made, given.into)
    load_methods()
    few, path = tiny(), given.into / "tiny.json"
    if not (path.exists() and same_tiny(json.loads(path.read_text(encoding="utf-8")), few)):
        path.write_text(json.dumps(few, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    size = sum(p.stat().st_size for p in given.into.rglob("*") if p.is_file())
    print(
        f"{given.into}: {len(made)} cases of {len({c.method for c in made})} of {len(METHODS)} methods, {size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
