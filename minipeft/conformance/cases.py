"""Recorded cases: what a method must compute on given arrays, in files that any language can read.

A case is a folder METHOD/CHECK/VARIANT with `case.json` (what is asked, under which configuration and reading, and how exactly),
`in.safetensors` and `want.safetensors` (float64), and for files of adapters a folder `adapter/`. docs/format.md is the page
of the format; `schema.json` its schema; `index.json` lists all cases with their digests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints.files import existing, read_json, read_tensors
from minipeft.errors import Bad, near

FORMAT = 1
HERE = Path(__file__).parent
SHIPPED = HERE / "cases"
ASKS = {
    "forward": "the outputs",
    "vjp": "the gradients of Σ g·output, g being the tensors named g.OUTPUT, by every input and every trained array",
    "delta": "the change of the weight, W' − W",
    "merge": "the merged weight and bias",
    "unmerge": "weight and bias after merging and taking the adapter out again",
    "combine": "the outputs of a weighted sum of adapters",
    "merge_bfloat16": "the merged weight and bias, the base being held in bfloat16, rounded once",
    "unmerge_bfloat16": "weight and bias after merging and taking the adapter out again, the base being held in bfloat16",
    "init": "the arrays as training starts",
    "train": "the trained arrays after some steps of an optimiser on ½ Σ (output − target)², and the weight",
    "load": "the outputs with an adapter read from files of Hugging Face PEFT; or a refusal",
    "quantize": "the four-bit codes, two in a byte, and the constants of the blocks",
    "dequantize": "the weight that a block-wise quantised one stands for",
}
CLASSES = ("EXACT", "ROUND1", "COND", "SUBSPACE", "REJECT", "SHAPES")


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

    files = {"in.safetensors": save({k: np.ascontiguousarray(v) for k, v in case.inputs.items()})}
    if case.want:
        files["want.safetensors"] = save({k: np.ascontiguousarray(v) for k, v in case.want.items()})
    files |= {f"adapter/{name}": data for name, data in case.files.items()}
    about = dict(
        format=FORMAT, id=case.id, since=case.since, method=case.method, check=case.check, variant=case.variant, ask=case.ask,
        source=case.source, equation=case.equation, place=case.place, config=dict(case.config), readings=dict(case.readings),
        options=dict(case.options), tensors={k: dict(role=case.roles[k], shape=list(v.shape), dtype=str(v.dtype)) for k, v in case.inputs.items()},
        want={k: dict(shape=list(v.shape), cond=case.cond.get(k, 0.0)) for k, v in case.want.items()},
        tolerance={"class": case.tolerance} | ({"K": case.k} if case.tolerance in ("COND", "SUBSPACE") else {}),
        witnesses=list(case.witnesses), flags=list(case.flags), seed=case.seed,
        digests={name: _digest(data) for name, data in files.items()},
    )  # fmt: skip
    return files | {"case.json": _text(about)}


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
        files = encode(case)
        if case.folder != folder / where and not ((folder / where).exists() and same(read(folder / where), case)):
            for name, data in files.items():
                path = folder / where / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        digest = _digest((folder / where / "case.json").read_bytes())
        index.append(dict(id=case.id, path=where, sha256=digest))
    (folder / "index.json").write_bytes(_text(dict(format=FORMAT, cases=index)))
    (folder / "schema.json").write_bytes(_text(SCHEMA))


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


def read(folder: Path, dtype: Any = np.float64) -> Case:
    """One case. Raises `Damaged` for files that were changed or are of another format, `Bad` for missing ones."""
    about = read_json(existing(folder, "case") / "case.json")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise Damaged(f"{folder / 'case.json'}: expected a case of format {FORMAT}, found {found}")
    for name, digest in about["digests"].items():
        if _digest(existing(folder / name).read_bytes()) != digest:
            raise Damaged(f"{folder / name}: its digest is not the one in case.json: the file was changed")
    want = read_tensors(folder / "want.safetensors") if "want.safetensors" in about["digests"] else {}
    return Case(
        **{k: about[k] for k in ("method", "check", "variant", "ask", "config", "readings", "place", "source", "equation", "since", "seed", "options")},
        inputs=read_tensors(folder / "in.safetensors"),
        roles={k: t["role"] for k, t in about["tensors"].items()},
        want=want, cond={k: t["cond"] for k, t in about["want"].items()},
        tolerance=about["tolerance"]["class"], k=about["tolerance"].get("K", 0.0), witnesses=tuple(about["witnesses"]),
        flags=tuple(about["flags"]), folder=folder, dtype=dtype,
    )  # fmt: skip


def load(
    folder: Path = SHIPPED, methods: list[str] | None = None, checks: list[str] | None = None, dtype: Any = np.float64
) -> Iterator[Case]:
    """The cases of a folder, some methods' and checks' alone. Raises `Bad`, with near misses, for unknown ones."""
    index = read_json(existing(folder, "folder") / "index.json")
    ids = [i["id"].split(".") for i in index["cases"]]
    for asked, known, what in ((methods, {i[0] for i in ids}, "method"), (checks, {i[1] for i in ids}, "check")):
        for name in asked or ():
            if name not in known:
                raise Bad(
                    f"{what} {name!r} has no recorded cases; there are {', '.join(sorted(known))}{near(name, known)}"
                )
    for item, (method, check, _) in zip(index["cases"], ids, strict=True):
        if (not methods or method in methods) and (not checks or check in checks):
            yield read(folder / item["path"], dtype)


SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A recorded case of minipeft, format 1",
    "type": "object",
    "required": [
        "format", "id", "since", "method", "check", "variant", "ask", "place", "config", "readings", "tensors", "want",
        "tolerance", "witnesses", "flags", "seed", "digests",
    ],
    "properties": {
        "format": {"const": FORMAT},
        "id": {"type": "string", "pattern": r"^[a-z0-9_]+\.[a-z0-9_]+\.[A-Za-z0-9_=-]+$"},
        "ask": {"enum": sorted(ASKS)},
        "config": {"type": "object"},
        "readings": {"type": "object", "additionalProperties": {"type": "string"}},
        "options": {"type": "object"},
        "tensors": {
            "type": "object",
            "additionalProperties": {
                "type": "object", "required": ["role", "shape", "dtype"],
                "properties": {
                    "role": {"enum": ["input", "base", "array", "stored", "cotangent", "target"]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "dtype": {"enum": ["float64", "int64", "int32", "uint8", "float32"]},
                },
            },
        },
        "want": {
            "type": "object",
            "additionalProperties": {
                "type": "object", "required": ["shape", "cond"],
                "properties": {"shape": {"type": "array"}, "cond": {"type": "number", "minimum": 0}},
            },
        },
        "tolerance": {"type": "object", "required": ["class"], "properties": {"class": {"enum": list(CLASSES)}, "K": {"type": "number"}}},
        "witnesses": {"type": "array", "items": {"type": "string"}},
        "flags": {"type": "array", "items": {"type": "string"}},
        "seed": {"type": "integer"},
        "digests": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
    },
}  # fmt: skip


def derived(name: str, got: Mapping[str, np.ndarray]) -> np.ndarray:
    """What factors determine whatever their signs and turns: `BA`, their product; `A_rows`, the projector on A's rows."""
    if name == "BA":
        return got["B"] @ got["A"]
    A = got["A"]
    return A.T @ np.linalg.solve(A @ A.T, A)


def bfloat16(a: np.ndarray) -> np.ndarray:
    """Every value rounded once to the nearest bfloat16, ties to even, in the dtype of a. Normal numbers only."""
    mantissa, exponent = np.frexp(a)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(a.dtype)


def with_dtype(case: Case, dtype: Any) -> Case:
    """The case, to be computed in another dtype."""
    return dataclasses.replace(case, dtype=dtype)
