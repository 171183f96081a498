"""SHiRA in PEFT: the values and their places, rows and columns in one tensor; it has no scale."""

from __future__ import annotations

import dataclasses
from typing import Any

from minipeft.adapted import Adapter
from minipeft.engine.backend import to_host
from minipeft.interop.peft.fields import COMMON, CONV, COUNT, INIT, SEED, TARGETS, WHOLE, needed, optional, plain, read
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.model.base import Model

KNOWN = COMMON | TARGETS | WHOLE | CONV | INIT | {
    "r": needed(COUNT, 32),
    "mask_type": plain("the file has the places", "random"),
    "random_seed": read(optional(SEED)),
}  # fmt: skip


def _scaled(model: Model, adapter: Adapter) -> Adapter:
    """The scale, which PEFT does not save, within the values."""
    method: Any = adapter.method
    at = {site: dataclasses.replace(m, scale=1.0) for site, m in adapter.at.items() if m.name == method.name}  # type: ignore[call-arg]
    arrays = {k: to_host(a) * method.scale if k.endswith(":v") else a for k, a in adapter.arrays.items()}
    return dataclasses.replace(
        adapter, method=dataclasses.replace(method, scale=1.0), at={**adapter.at, **at}, arrays=arrays
    )


SPEC = Spec(
    "SHIRA",
    KNOWN,
    keys={
        "v": Key("shira_weight", size="(n)"),
        "rows": Key("shira_indices", shape=(2, None), row=0, size="(2, n): rows, columns"),
        "cols": Key("shira_indices", shape=(2, None), row=1),
    },
    settings=dict(r="r", seed="random_seed"),
    writes=lambda m, arch: dict(mask_type="random"),
    plain=_scaled,
    unasked=lambda m: "" if m.scale == 1.0 else "SHiRA's scale is no setting of PEFT",
    trials=(Trial("llama", dict(r=2, seed=3)),),
)
