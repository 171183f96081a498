"""The checkpoint of a training: all that a killed run needs to end with the same bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted, Adapter
from minipeft.arrays import declared
from minipeft.drawing import Facts
from minipeft.engine.backend import to_device, to_host
from minipeft.errors import Bad, near
from minipeft.merging import digest
from minipeft.model.batch import Batch
from minipeft.shown import shortly
from minipeft.targets import sites
from minipeft.train.state import State, fetched

AFRESH = "remove the file to start afresh"
LISTS = ("losses", "penalties")
PARTS = 1 << 16  # that a batch is cut into, at most: one for each rank


def identity_of(adapted: Adapted, data: Sequence[Batch], optimiser: Any, *settings: Any) -> dict[str, str]:
    arrays = {f"{i}:{k}": v for i, b in enumerate(data) for k, v in b.arrays.items()}
    return {
        "base": adapted.model.digest(),
        "adapters": repr(
            [(a.name, _all(a.method), {s: _all(m) for s, m in a.at.items()}, sorted(a.trained)) for a in adapted.in_use]
        ),
        "start": digest({f"{a.name}/{k}": v for a in adapted.in_use for k, v in a.arrays.items()}),
        "data": digest(arrays),
        "optimiser": _all(optimiser),
        "settings": repr(settings),
    }


def _all(made: Any) -> str:
    """All settings, also those that are as usual: what is usual may change."""
    return (
        f"{type(made).__name__}({', '.join(f'{f.name}={getattr(made, f.name)!r}' for f in dataclasses.fields(made))})"
    )


class Checkpoint:
    """The file that a training writes, and goes on from when it is started again. `state` is as it begins."""

    def __init__(self, path: Path, adapted: Adapted, state: State, identity: dict[str, str], steps: int) -> None:
        self.path, self.adapted, self.identity, self.steps = path, adapted, identity, steps
        self.arrays = {f"theta:{k}": _kind(x) for k, x in state.theta.items()}
        self.arrays |= {f"moments:{k}": _kind(x) for k, x in state.moments.items()}
        self.left = self._lies()  # what this training knows to lie there

    def _lies(self) -> tuple[int, int, int] | None:
        try:
            there = self.path.stat()
        except OSError:
            return None
        return there.st_ino, there.st_mtime_ns, there.st_size

    def save(self, state: State, t: int) -> None:
        """Write the state after step t. Raises `Bad` if another training has written there in the meantime."""
        from minipeft.checkpoints.files import write_tensors

        tensors = {f"theta:{k}": v for k, v in state.theta.items()} | {
            f"moments:{k}": v for k, v in state.moments.items()
        }
        tensors |= {f"own:{name}:{k}": v for name, own in state.own.items() for k, v in own.items()}
        tensors["losses"] = np.asarray(state.losses, np.float64)
        tensors["penalties"] = np.asarray(fetched(state.penalties), np.float64)
        host = {k: np.asarray(to_host(v)) for k, v in tensors.items()}
        if wrong := self._wrong_in(host, t):
            raise Bad(f"{self.path}: not written after step {t}: {wrong}")
        if (lies := self._lies()) is not None and lies != self.left:
            raise Bad(f"{self.path}: another training writes to this file; give each a folder of its own")
        about: dict[str, Any] = self.identity | {"step": t, "parts": state.parts}
        about["digest"] = _digest(about, host)
        write_tensors(self.path, host, {"training": json.dumps(about, sort_keys=True)})
        self.left = self._lies()

    def restore(self, state: State) -> int:
        """Fill the state from the file and return the step it was written after, 0 if there is none. Batches stay in
        as many parts as they were in.

        Raises `Bad`, the state being as it was, if the file belongs to another training or is not as it was written.
        """
        from minipeft.checkpoints.files import read_header, read_tensors

        if self.left is None:
            return 0
        about = read_header(self.path).get("__metadata__", {})
        try:
            found: dict[str, Any] = dict(json.loads(about["training"]))
        except (KeyError, TypeError, ValueError, RecursionError):
            raise Bad(f"{self.path}: expected the checkpoint of a training, found another file") from None
        for key, expected in self.identity.items():
            if found.get(key) != expected:
                raise Bad(f"{self.path}: this checkpoint is of another training: its {key} differs; {AFRESH}")
        tensors: dict[str, np.ndarray] = read_tensors(self.path)
        step: Any = found.get("step")
        parts: Any = found.get("parts", 1)
        wrong = self._wrong_in(tensors, step)
        if not wrong and (type(parts) is not int or not 1 <= parts <= PARTS):
            wrong = f"expected batches in 1 to {PARTS} parts, found {shortly(parts)}"
        if wrong:
            raise Bad(f"{self.path}: {wrong}; {AFRESH}")
        if found.pop("digest", None) != _digest(found, tensors):
            raise Bad(f"{self.path}: damaged: what it holds is not what was written; {AFRESH}")
        for kind, into in (("theta", state.theta), ("moments", state.moments)):
            into.update({k: to_device(tensors[f"{kind}:{k}"]) for k in into})
        for key, a in tensors.items():
            if key.startswith("own:"):
                _, adapter, name = key.split(":", 2)
                state.own[adapter][name] = to_device(a)
        state.losses, state.penalties = ([float(x) for x in tensors[k]] for k in LISTS)
        state.parts = parts
        return step

    def _wrong_in(self, tensors: Mapping[str, np.ndarray], step: Any) -> str:
        """What is wrong with a state after this step, "" if nothing."""
        if type(step) is not int or not 1 <= step <= self.steps:
            return f"expected a step from 1 to {self.steps}, found {shortly(step)}"
        expected = self.arrays | dict.fromkeys(LISTS, ((step,), "float64"))
        for a in self.adapted.in_use:
            expected |= _kept(a, self.adapted, tensors)
        if odd := sorted(tensors.keys() - expected.keys()):
            return f"unexpected array {odd[0]!r}{near(odd[0], expected)}"
        for key, (shape, dtype) in expected.items():
            if key not in tensors:
                return f"array {key!r} is missing"
            x = tensors[key]
            if _kind(x) != (shape, dtype):
                return f"{key}: expected {dtype} of shape {shape}, found {x.dtype} of shape {x.shape}"
            # a moment may overflow and the training go on
            bad = np.isnan if key.startswith(("moments:", "own:")) else lambda x: ~np.isfinite(x)
            if bad(x).any():
                return f"{key} has NaN or infinite values"
        return ""


def _kept(adapter: Adapter, adapted: Adapted, tensors: Mapping[str, Any]) -> dict[str, tuple]:
    """Shapes and types of what this adapter's method keeps, all of a name of which there is any."""
    own, mine = f"own:{adapter.name}:", [s for s, m in adapter.at.items() if type(m) is type(adapter.method)]
    trained = {k: x for k, x in adapter.arrays.items() if k in adapter.trained and k.rpartition(":")[0] in ("", *mine)}
    out: dict[str, tuple] = {}
    for name, it in declared(type(adapter.method)).kept.items():
        if it.shape:
            where = [s for n, s in sites(adapted.model).items() if n in mine]
            facts = Facts(adapter.method, where[0], sites=where)
            shape = tuple(int(facts.value(str(n))) for n in it.shape)
            kinds = {own + name: (shape, str(np.dtype(adapted.model.dtype)))}
        else:
            kinds = {f"{own}{name}/{k}": _kind(x) for k, x in trained.items() if it.of in ("", k.rpartition(":")[2])}
        if kinds.keys() & tensors.keys():
            out |= {k: (shape, "bool" if it.truth else dtype) for k, (shape, dtype) in kinds.items()}
    return out


def _kind(x: Any) -> tuple[tuple[int, ...], str]:
    return tuple(x.shape), str(np.dtype(x.dtype))


def _digest(about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Of the arrays, and of all that is said of them."""
    said = json.dumps(about, sort_keys=True).encode()
    return digest({**tensors, "about": np.frombuffer(said, np.uint8)})
