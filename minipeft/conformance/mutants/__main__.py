"""`python -m minipeft.conformance.mutants` writes docs/mutants.md; `--all [METHOD…]` tries every small error in methods' own code."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from minipeft.conformance import cases as files
from minipeft.conformance.mutants import killing, surviving
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods, method_class

PAGE = Path(__file__).parents[3] / "docs" / "mutants.md"


def surveyed(names: list[str]) -> list[surviving.Survey]:
    """What became of the mutants of methods, by default of all that have recorded cases."""
    from minipeft.cli.terminal import progress

    load_methods()
    names = names or sorted(files.methods_in() & METHODS.keys())
    found = []
    with progress("altering", len(names)) as tick:
        for name in names:
            tick.doing(name)
            found.append(surviving.survey(method_class(name)))
            tick(name)
    return found


def main() -> None:
    """The page; or a table, and of named methods every survivor with its reason. Status 1 if one is not explained."""
    parser = argparse.ArgumentParser(prog="python -m minipeft.conformance.mutants", description=main.__doc__)
    parser.add_argument(
        "--all", nargs="*", metavar="METHOD", help="every small error in the code of these (default: all)"
    )
    given = parser.parse_args().all
    if given is None:
        page = killing.markdown(killing.kill_matrix(list(files.load()))) + "\n" + surviving.markdown(surveyed([]))
        PAGE.write_text(page, encoding="utf-8")
        return
    try:
        found = surveyed(given)
    except Bad as why:
        raise SystemExit(f"mutants: {why}") from None
    print(f"{'method':20}{'mutants':>9}{'killed':>9}{'survive':>9}{'never run':>11}{'unexplained':>13}")
    for s in found:
        open_ones = sum(not why for why in s.left.values())
        print(
            f"{s.method:20}{s.killed + len(s.survived):9}{s.killed:9}{len(s.survived):9}{len(s.idle):11}{open_ones:13}"
        )
        for reason, count in Counter(s.left.values()).items() if given else ():
            print(f"{count:4}  {reason or 'unexplained'}")
    faults = [fault for s in found for fault in s.faults]
    print(*faults, sep="\n", end="\n" if faults else "")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
