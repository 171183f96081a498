"""Recorded cases: what a method must compute on given arrays, in files that any language can read.

A case is a folder METHOD/CHECK/VARIANT with `case.json` (what is asked, under which configuration and reading, and how exactly),
`in.safetensors` and `want.safetensors` (float64), and for files of adapters a folder `adapter/`. docs/format.md is the page
of the format; `schema.json` its schema; `index.json` lists all cases with their digests.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints.files import existing
from minipeft.conformance.moments import MOMENTS
from minipeft.conformance.schema import ASKS as ASKS
from minipeft.conformance.schema import CLASSES as CLASSES
from minipeft.conformance.schema import FORMAT, INDEX, SCHEMA, fault, short
from minipeft.conformance.taking import arrays, contents, there
from minipeft.errors import Bad, meant, near
from minipeft.limits import CASE_BYTES, LOOSEST

HERE = Path(__file__).parent
SHIPPED = HERE / "cases"
TENSORS = {"in.safetensors": "tensors", "want.safetensors": "want"}  # and where case.json declares what they hold


class Unsupported(Exception):
    """What an implementation has not: a reason, and the address of an issue or page."""

    def __init__(self, reason: str, url: str = "") -> None:
        super().__init__(reason)
        self.url = url


class Rejected(Exception):
    """What an implementation refuses, as it should in cases that ask for it: the phase, and the message it gives."""


class Damaged(Bad):
    """Recorded cases that are not as they were recorded."""


@dataclass(frozen=True)
class Case:
    """One recorded case. `inputs` and `want` are arrays in float64 (ids in int64); `cond` a number for every wanted tensor."""

    method: str
    check: str
    variant: str
    ask: str
    config: Mapping[str, Any]
    readings: Mapping[str, str] = field(default_factory=dict)
    place: str = "linear"
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    roles: Mapping[str, str] = field(
        default_factory=dict
    )  # tensor -> input | base | array | stored | cotangent | target
    want: Mapping[str, np.ndarray] = field(default_factory=dict)
    cond: Mapping[str, float] = field(default_factory=dict)
    tolerance: str = "COND"
    k: float = 8.0
    witnesses: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()  # incidents that this case would have caught
    options: Mapping[str, Any] = field(default_factory=dict)  # of what is asked: the optimiser of a training
    files: Mapping[str, bytes] = field(default_factory=dict)  # of adapter/
    source: str = ""
    equation: str = ""
    since: str = "0.1"
    seed: int = 0
    folder: Path | None = None
    dtype: Any = np.float64  # that the implementation is to compute in
    recorded: Mapping[str, bytes] = field(
        default_factory=dict, repr=False, compare=False
    )  # its files, as they were read

    @property
    def id(self) -> str:
        """METHOD.CHECK.VARIANT."""
        return f"{self.method}.{self.check}.{self.variant}"

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The inputs in the dtype asked for."""
        return {k: v.astype(self.dtype) if v.dtype.kind == "f" else v for k, v in self.inputs.items()}

    def named(self, *roles: str) -> dict[str, np.ndarray]:
        """The inputs of some roles, in the dtype asked for."""
        return {k: v for k, v in self.tensors.items() if self.roles[k] in roles}

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the trained arrays."""
        return tuple(k for k, r in self.roles.items() if r == "array")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def encode(case: Case) -> dict[str, bytes]:
    """The files of a case, by name."""
    from safetensors.numpy import save

    files = {"in.safetensors": save({k: np.asarray(v, order="C") for k, v in case.inputs.items()})}
    if case.want:
        files["want.safetensors"] = save({k: np.asarray(v, order="C") for k, v in case.want.items()})
    files |= {f"adapter/{name}": data for name, data in case.files.items()}
    about = dict(
        format=FORMAT, id=case.id, since=case.since, method=case.method, check=case.check, variant=case.variant, ask=case.ask,
        source=case.source, equation=case.equation, place=case.place, config=dict(case.config), readings=dict(case.readings),
        options=dict(case.options), tensors={k: dict(role=case.roles[k], shape=list(v.shape), dtype=str(v.dtype)) for k, v in case.inputs.items()},
        want={k: dict(shape=list(v.shape), cond=case.cond.get(k, 0.0)) for k, v in case.want.items()},
        tolerance={"class": case.tolerance} | ({"K": case.k} if case.tolerance in ("COND", "SUBSPACE", "DRAWN") else {}),
        witnesses=list(case.witnesses), flags=list(case.flags), seed=case.seed,
        digests={name: _digest(data) for name, data in files.items()},
    )  # fmt: skip
    return files | {"case.json": _text(about)}


def listing(index: list[dict[str, str]]) -> dict[str, bytes]:
    """What lies beside the cases of a folder: their index, and the schema."""
    return {"index.json": _text(dict(format=FORMAT, cases=index)), "schema.json": _text(SCHEMA)}


def put(case: Case, folder: Path) -> None:
    """Write the files of a case into a folder, as they were read: what a program does there, it does to a copy."""
    _put(case.recorded or encode(case), folder)


def _put(files: Mapping[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read(folder: Path, dtype: Any = np.float64) -> Case:
    """One case. Raises `Damaged` for files that are not as they were recorded, `Bad` for a folder that is not there.

    A case that lies where an index.json lists it is what that lists.
    """
    case = _read(existing(folder, "case"), dtype)
    parts, above = folder.absolute().parts, folder.absolute().parents
    if len(above) > 2 and there(above[2] / "index.json"):
        where = "/".join(parts[-3:])
        try:
            index = _index(above[2])
        except Damaged:
            if where == path_of(case.id):  # else it may be an index of anything
                raise
            return case
        if where in index or where == path_of(case.id):
            _as_listed(case, above[2], index)
    return case


def load(
    folder: Path = SHIPPED, methods: list[str] | None = None, checks: list[str] | None = None, dtype: Any = np.float64
) -> Iterator[Case]:
    """The cases of a folder, some methods' and checks' alone. Raises `Bad`, with near misses, for unknown ones; `Damaged` as `read`,
    and for a folder of a case that the index does not list."""
    index = _index_of(folder)
    for path in listed(folder, methods, checks):
        case = _read(folder / path, dtype)
        _as_listed(case, folder, index)
        yield case


def listed(folder: Path = SHIPPED, methods: list[str] | None = None, checks: list[str] | None = None) -> list[str]:
    """Where the cases lie in a folder that `load` gives, as the index lists them. Raises as `load` does."""
    index = _index_of(folder)
    if strangers := sorted(_folders(folder) - index.keys()):
        raise Damaged(f"{folder / strangers[0]}: expected a case that index.json lists; it lists none there")
    kept = list(index)
    for asked, place, what in ((methods, 0, "method"), (checks, 1, "check")):
        known = {path.split("/")[place] for path in index}
        found = {name: meant(name, known) for name in asked or ()}
        for name in found:
            if found[name] is None:
                raise Bad(
                    f"{what} {name!r} has no recorded cases{near(name, known)}; there are {', '.join(sorted(known))}"
                )
        kept = [path for path in kept if not asked or path.split("/")[place] in found.values()]
    return kept


def ids_in(folder: Path = SHIPPED) -> list[str]:
    """The ids of all cases of a folder, as its index lists them."""
    return [path.replace("/", ".") for path in _index_of(folder)]


def methods_in(folder: Path = SHIPPED) -> set[str]:
    """The methods that a folder has cases of."""
    return {i.partition(".")[0] for i in ids_in(folder)}


def path_of(name: str) -> str:
    """Where the case of an id lies."""
    return name.replace(".", "/")


def _folders(root: Path) -> set[str]:
    """METHOD/CHECK/VARIANT of all there are."""

    def below(folders: Iterable[str]) -> Iterator[str]:
        for folder in folders:
            yield from (f"{folder}/{e.name}".removeprefix("/") for e in _entries(root / folder) if e.is_dir())

    return {path for path in below(below(below([""]))) if there(root / path / "case.json")}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda e: e.name)
    except OSError as why:
        raise Damaged(f"{folder}: cannot be read: {why.strerror}") from None


def _index_of(folder: Path) -> dict[str, str]:
    """The index of a folder that a user named. Raises `Bad` if there is none."""
    existing(existing(folder, "folder") / "index.json")
    return _index(folder)


def _index(root: Path) -> dict[str, str]:
    """{path of a case: the digest of its case.json}. Raises `Damaged`."""
    return _listed(root / "index.json", _contents(root / "index.json"))


@functools.lru_cache(maxsize=4)
def _listed(path: Path, data: bytes) -> dict[str, str]:
    cases = _checked(path, data, INDEX)["cases"]
    for item in cases:
        if item["path"] != path_of(item["id"]):
            raise Damaged(f"{path}: expected {item['id']} to lie at {path_of(item['id'])}, found {short(item['path'])}")
    out = {item["path"]: item["sha256"] for item in cases}
    if len(out) < len(cases):
        raise Damaged(f"{path}: it lists a case twice")
    return out


def _as_listed(case: Case, root: Path, index: Mapping[str, str]) -> None:
    """Raises `Damaged` unless an index lists the case, and with this case.json, and it lies in there."""
    path, where = path_of(case.id), case.folder
    assert where is not None
    if path not in index:
        raise Damaged(f"{where}: expected a case that index.json lists; it lists no {case.id}")
    if os.path.realpath(where) != os.path.join(os.path.realpath(root), *path.split("/")):
        raise Damaged(
            f"{where}: expected the case to lie at {path} of {root}; it is another one, or a link to elsewhere"
        )
    if _digest(case.recorded["case.json"]) != index[path]:
        raise Damaged(f"{where / 'case.json'}: its digest is not the one in index.json: the file was changed")


def _contents(path: Path) -> bytes:
    try:
        return contents(path, CASE_BYTES)
    except Bad as why:
        raise Damaged(str(why)) from None


def _checked(path: Path, data: bytes, schema: Mapping[str, Any]) -> Any:
    """The JSON of a file, which is as a schema says and of this format. Raises `Damaged`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as why:
        raise Damaged(f"{path}: expected JSON: {why}") from None
    if isinstance(value, dict) and value.get("format") != FORMAT:
        what = "an index" if schema is INDEX else "a case"
        raise Damaged(f"{path}: expected {what} of format {FORMAT}, found {short(value.get('format'))}")
    if said := fault(value, schema):
        raise Damaged(f"{path}: {said}")
    return value


def _files(folder: Path) -> Iterator[str]:
    """The names of all files of a case."""
    for entry in _entries(folder):
        yield from (
            (f"{entry.name}/{e.name}" for e in _entries(folder / entry.name)) if os.path.isdir(entry) else [entry.name]
        )


def _read(folder: Path, dtype: Any) -> Case:
    """A case by its own case.json: every file has its digest there, every array its shape and dtype."""
    path = folder / "case.json"
    recorded = {"case.json": _contents(path)}
    about = _checked(path, recorded["case.json"], SCHEMA)
    if about["id"] != f"{about['method']}.{about['check']}.{about['variant']}":
        raise Damaged(f"{path}: expected the id METHOD.CHECK.VARIANT, found {about['id']}")
    if odd := sorted({*_files(folder)} ^ {"case.json", *about["digests"]}):
        what = (
            "it has no digest in case.json"
            if odd[0] not in about["digests"]
            else "case.json has its digest, it is not there"
        )
        raise Damaged(f"{folder / odd[0]}: {what}")
    for name, digest in about["digests"].items():
        recorded[name] = _contents(folder / name)
        if _digest(recorded[name]) != digest:
            raise Damaged(f"{folder / name}: its digest is not the one in case.json: the file was changed")
    held = {name: _arrays(folder / name, recorded.get(name), about[declared]) for name, declared in TENSORS.items()}
    case = Case(
        **{k: about[k] for k in ("method", "check", "variant", "ask", "config", "readings", "place", "source", "equation", "since", "seed", "options")},
        inputs=held["in.safetensors"], roles={k: t["role"] for k, t in about["tensors"].items()},
        want=held["want.safetensors"], cond={k: float(t["cond"]) for k, t in about["want"].items()},
        tolerance=about["tolerance"]["class"], k=about["tolerance"].get("K", 0.0), witnesses=tuple(about["witnesses"]),
        flags=tuple(about["flags"]), folder=folder, dtype=dtype, recorded=recorded,
    )  # fmt: skip
    if said := _lax(case):
        raise Damaged(f"{path}: {said}")
    return case


def _arrays(path: Path, data: bytes | None, declared: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a file, which are those that case.json declares. Raises `Damaged`."""
    try:
        held = arrays(data) if data is not None else {}
    except Bad as why:
        raise Damaged(f"{path}: {why}") from None
    for name in sorted(held.keys() | declared.keys()):
        found = [list(held[name].shape), str(held[name].dtype)] if name in held else ["nothing"]
        entry = declared.get(name)
        expected = [entry["shape"], entry.get("dtype", found[-1])] if entry else ["nothing"]
        if found != expected:
            said, there_is = (" of ".join(map(str, words[::-1])) for words in (expected, found))
            raise Damaged(f"{path}: {short(name)}: expected {said}, found {there_is}")
    return held


def _lax(case: Case) -> str:
    """Why a case would be passed by what is wrong, '' if it would not."""
    if (case.tolerance == "REJECT") != (not case.want):
        return (
            f"expected a refusal or tensors to be wanted, found the class {case.tolerance} and {len(case.want)} tensors"
        )
    for name, a in case.want.items():
        if a.dtype.kind == "f" and not np.isfinite(a).all():
            return f"{name} is wanted with NaN or infinite values"
    if case.tolerance in ("COND", "SUBSPACE", "DRAWN") and not case.k:
        return f"the class {case.tolerance} has no K"
    if case.tolerance == "DRAWN":
        shapes, times = case.options.get("shapes"), case.options.get("times")
        if not isinstance(times, int) or not isinstance(shapes, dict):
            return "what is drawn has options.times and options.shapes"
        if odd := [n for n in case.want if n.rpartition(".")[0] not in shapes or n.rpartition(".")[2] not in MOMENTS]:
            return f"{odd[0]} is no moment of an array of options.shapes"
    if case.tolerance in ("COND", "SUBSPACE"):
        for name, a in case.want.items():
            largest = float(abs(a).max(initial=0))
            if largest and case.k * case.cond[name] * 2.0**-24 > LOOSEST * largest:
                return f"{name}: K {case.k:g} and cond {case.cond[name]:g} let pass what is not {largest:g}"
    return ""


def derived(name: str, got: Mapping[str, np.ndarray]) -> np.ndarray:
    """What factors determine whatever their signs and turns: `BA`, their product; `A_rows` and `B_columns`, the projectors on these."""
    if name == "BA":
        return got["B"] @ got["A"]
    A = got["A"] if name == "A_rows" else got["B"].T
    return A.T @ np.linalg.solve(A @ A.T, A)


def bfloat16(a: np.ndarray) -> np.ndarray:
    """Every value rounded once to the nearest bfloat16, ties to even, in the dtype of a. Normal numbers only."""
    mantissa, exponent = np.frexp(a)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(a.dtype)


def with_dtype(case: Case, dtype: Any) -> Case:
    """The case, to be computed in another dtype."""
    return dataclasses.replace(case, dtype=dtype)
