"""Folding adapters into the weights of an ordinary model; digests of arrays."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.adapted import Adapted
from minipeft.engine.backend import to_host
from minipeft.engine.weight import again
from minipeft.errors import Bad
from minipeft.method import is_weight
from minipeft.model.base import Model
from minipeft.model.parts import tied


def merge(adapted: Adapted) -> Model:
    """The base with the adapters in use folded into its weights: an ordinary model.

    A weight that was held in bfloat16 is so again, W' being computed in float32 and rounded once; one that was
    quantised is not. Layers that were repeated are apart from then on. Raises `Bad` naming the adapter whose change is no weight.
    """
    for a in adapted.in_use:
        for site, method in a.at.items():
            if not is_weight(method):
                raise Bad(f"adapter {a.name!r} ({method.name}) does not merge: at {site} its change is no weight")
    run = adapted.run()
    names = set(adapted.model.params)
    for a in adapted.in_use:
        for site, method in a.at.items():
            if is_weight(method) and site.endswith(".weight"):
                names.add(site.removesuffix("weight") + "bias")
    touched = {site for a in adapted.in_use for site in a.at}
    arch = adapted.model.arch
    follow = tied(arch)  # a change of the table may reach the head and its bias
    touched |= {head for head, table in follow.items() if table in touched}
    touched |= {s.removesuffix("weight") + "bias" for s in touched if s.endswith(".weight")}

    def folded(n: str) -> Any:
        W = run.param(n)
        return again(W, adapted.model.params.get(n, run.held(n)))

    params = {n: W for n in names if (W := folded(n) if n in touched else adapted.model.params[n]) is not None}
    for head in follow.keys() & touched:
        if not bool((run.param(head) == run.param(follow[head])).all()):  # the change broke the tie
            params[head] = folded(head)
            arch = dataclasses.replace(arch, tied=False)
    order = [*adapted.model.params, *sorted(names - set(adapted.model.params)), *follow]
    params = {n: params[n] for n in order if n in params}
    return dataclasses.replace(adapted.model, arch=arch, params=params, origin=())


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of arrays."""
    h = hashlib.sha256()
    for key in sorted(arrays):
        a = np.ascontiguousarray(to_host(arrays[key]))
        h.update(f"{key}:{a.dtype}:{a.shape}".encode())
        h.update(a.data)
    return h.hexdigest()
