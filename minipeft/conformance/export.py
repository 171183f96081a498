"""The recorded cases as one archive, for those who have no Python: all files, the page of the format, a judge, harnesses to start from,
and a list of digests.

The same cases give the same bytes: names are sorted, and no time, user or machine is written down.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from minipeft import __version__
from minipeft.checkpoints.files import place_folder, place_of, write_bytes
from minipeft.conformance import cases
from minipeft.conformance.cases import SHIPPED, Case
from minipeft.conformance.languages import LANGUAGES, SKELETONS
from minipeft.conformance.new import files_of
from minipeft.errors import Bad

PAGE = cases.HERE / "format.md"  # a link to docs/format.md, which packages hold as a file
JUDGE = cases.HERE / "judge.mjs"
HARNESSES = "harnesses"
SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it
TARS, ZIPS = (".tar.gz", ".tgz"), (".zip",)


def contents(
    folder: Path = SHIPPED, methods: list[str] | None = None, checks: list[str] | None = None,
    seen: Callable[[Case], None] = lambda case: None,
) -> dict[str, bytes]:  # fmt: skip
    """The files of an export by name, sorted: cases/ with an index of those chosen, format.md, judge.mjs, harnesses/, SHA256SUMS. `seen` is
    called with every case.

    Raises `Bad` for methods and checks that no case has, `Damaged` for cases that are not as they were recorded.
    """
    held, index = {PAGE.name: PAGE.read_bytes(), JUDGE.name: JUDGE.read_bytes()}, []
    for language in LANGUAGES:
        if not (SKELETONS / language / "harness.py").exists():  # those in Python need minipeft
            held |= {f"{HARNESSES}/{language}/{name}": data for name, data in files_of(language).items()}
    for case in cases.load(folder, methods, checks):
        where = cases.path_of(case.id)
        held |= {f"cases/{where}/{name}": data for name, data in case.recorded.items()}
        index.append(dict(id=case.id, path=where, sha256=_digest(case.recorded["case.json"])))
        seen(case)
    if not index:
        raise Bad("no recorded case is of these methods and checks")
    held |= {f"cases/{name}": data for name, data in cases.listing(index).items()}
    if (few := folder / "tiny.json").exists():
        tiny = json.loads(few.read_bytes())
        tiny["cases"] = [c for c in tiny["cases"] if _chosen(c["id"], methods, checks)]
        held["cases/tiny.json"] = (json.dumps(tiny, indent=1, sort_keys=True) + "\n").encode()
    held[SUMS] = "".join(f"{_digest(held[name])}  {name}\n" for name in sorted(held)).encode()
    return dict(sorted(held.items()))


def _chosen(name: str, methods: Iterable[str] | None, checks: Iterable[str] | None) -> bool:
    _, method, check, _ = name.split(".")
    return (not methods or method in methods) and (not checks or check in checks)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refuse(out: Path, force: bool = False) -> None:
    """Raises `Bad` if an export cannot be written there: something is there, unless `force`; with `force`, unless it is a file that
    takes an archive, or a folder that is an export."""
    place, packed = Path(os.path.realpath(out)), out.name.endswith(TARS + ZIPS)
    if not place.exists():
        return
    if packed:
        place_of(out)
    elif not place.is_dir():
        raise Bad(f"{out}: expected a name that ends with {', '.join(TARS + ZIPS)}, or a folder; found a file")
    elif not (found := sorted(p.name for p in place.iterdir())):
        return
    elif strange := [name for name in found if name not in ("cases", HARNESSES, PAGE.name, JUDGE.name, SUMS)]:
        raise Bad(f"{out}: holds {strange[0]}, which is no part of an export; give a new folder")
    if not force:
        raise Bad(f"{out}: is there; give another name, or --force to write over it")


def write(files: Mapping[str, bytes], out: Path, force: bool = False) -> None:
    """Write the files of an export whole or not at all: as .tar.gz, .tgz or .zip, in a folder named after the version, else as a folder.

    Raises `Bad` as `refuse` does, and for what cannot be written.
    """
    refuse(out, force)
    inside = {f"minipeft-cases-{__version__}/{name}": data for name, data in files.items()}
    if out.name.endswith(ZIPS):
        return write_bytes(out, _zip(inside))
    if out.name.endswith(TARS):
        return write_bytes(out, _tar(inside))
    place = Path(os.path.realpath(out))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as why:
        raise Bad(f"{out}: cannot be written: {why.strerror or why}") from None
    try:
        folder.chmod(0o755)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        place_folder(folder, place)
    except OSError as why:
        raise Bad(f"{out}: cannot be written: {why.strerror or why}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tar(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def _zip(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # as if written on Unix, wherever it is
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()
