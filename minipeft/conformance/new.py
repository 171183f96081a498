"""Writes the beginning of a harness, a program that answers the protocol of docs/format.md, in one of several languages:
`python -m minipeft.conformance.new LANGUAGE FOLDER`. It has one method, passes as it is, and a README.md says how to go on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from minipeft.checkpoints.files import write_bytes
from minipeft.conformance.languages import LANGUAGES, SKELETONS
from minipeft.errors import Bad, near


def skeleton(language: str, folder: Path) -> list[Path]:
    """Write the skeleton in a language into a folder, and return the files written.

    Raises `Bad`, with near misses, for an unknown language; for a folder that exists and is not empty; and for one that cannot
    be written to.
    """
    if language not in LANGUAGES:
        raise Bad(f"language {language!r}: expected one of {', '.join(LANGUAGES)}{near(language.lower(), LANGUAGES)}")
    if folder.exists() and not folder.is_dir():
        raise Bad(f"{folder}: expected a folder, found a file")
    if folder.exists() and (found := sorted(p.name for p in folder.iterdir())):
        raise Bad(f"{folder}: expected an empty folder or none, found {', '.join(found[:3])}")
    written = []
    for name, data in files_of(language).items():
        written.append(folder / name)
        write_bytes(written[-1], data)
    return written


def files_of(language: str) -> dict[str, bytes]:
    """The files of a skeleton by their paths in it, sorted."""
    source = SKELETONS / language
    found = sorted(p for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(source).as_posix(): p.read_bytes() for p in found}


def main(argv: list[str]) -> None:
    """Write a skeleton and print its files; a mistake is one line on standard error and status 2."""
    try:
        if len(argv) != 2:
            raise Bad(f"expected LANGUAGE FOLDER, LANGUAGE being one of {', '.join(LANGUAGES)}")
        for path in skeleton(argv[0], Path(argv[1])):
            print(path)
    except Bad as why:
        print(f"minipeft: {why}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
