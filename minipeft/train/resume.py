"""The checkpoint of a training: all that a killed run needs to end with the same bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.engine.backend import to_device, to_host
from minipeft.errors import Bad
from minipeft.merging import digest
from minipeft.model.batch import Batch
from minipeft.train.state import State, fetched


def identity_of(adapted: Adapted, data: Sequence[Batch], optimiser: Any, *settings: Any) -> dict[str, str]:
    arrays = {f"{i}:{k}": v for i, b in enumerate(data) for k, v in b.arrays.items()}
    return {
        "base": adapted.model.digest(),
        "adapters": repr([(a.name, a.method, dict(a.at), sorted(a.trained)) for a in adapted.in_use]),
        "start": digest({f"{a.name}/{k}": v for a in adapted.in_use for k, v in a.arrays.items()}),
        "data": digest(arrays),
        "optimiser": repr(optimiser),
        "settings": repr(settings),
    }


def save(path: Path, state: State, identity: dict[str, str], t: int) -> None:
    from minipeft.checkpoints.files import write_tensors

    tensors = {f"theta:{k}": v for k, v in state.theta.items()} | {f"moments:{k}": v for k, v in state.moments.items()}
    tensors |= {f"own:{name}:{k}": v for name, own in state.own.items() for k, v in own.items()}
    tensors["losses"] = np.asarray(state.losses, np.float64)
    tensors["penalties"] = np.asarray(fetched(state.penalties), np.float64)
    host = {k: np.ascontiguousarray(to_host(v)) for k, v in tensors.items()}
    write_tensors(path, host, {"training": json.dumps(identity | {"step": t}, sort_keys=True)})


def restore(path: Path, state: State, identity: dict[str, str]) -> int:
    """Fill the state from a file and return the step it was written after. Raises `Bad` if it belongs to another training."""
    from minipeft.checkpoints.files import read_header, read_tensors

    about = read_header(path).get("__metadata__", {})
    try:
        found = dict(json.loads(about["training"]))
    except (KeyError, TypeError, ValueError):
        raise Bad(f"{path}: expected the checkpoint of a training, found another file") from None
    for key, expected in identity.items():
        if found.get(key) != expected:
            raise Bad(
                f"{path}: this checkpoint is of another training: its {key} differs; remove the file to start afresh"
            )
    for name, a in read_tensors(path).items():
        kind, _, rest = name.partition(":")
        if kind == "theta":
            state.theta[rest] = to_device(a)
        elif kind == "moments":
            state.moments[rest] = to_device(a)
        elif kind == "own":
            adapter, _, key = rest.partition(":")
            state.own[adapter][key] = to_device(a)
        else:
            setattr(state, kind, [float(x) for x in a])
    return found["step"]
