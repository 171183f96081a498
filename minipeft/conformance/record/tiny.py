"""The tiny tier: a few cases of a handful of numbers each, as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.conformance import cases as files
from minipeft.conformance.cases import Case
from minipeft.conformance.own import config_of
from minipeft.conformance.places import Arrays
from minipeft.conformance.record.one import finished, generator, single
from minipeft.conformance.witnesses import tiny_of
from minipeft.method import METHODS


def tiny() -> dict[str, Any]:
    """A few cases of a handful of numbers each, as plain JSON with C99 hexadecimal floats."""
    made = []
    settings = [(name, *one) for name in sorted(METHODS) for one in tiny_of(name)]
    for name, fields, shapes in settings:
        rng = generator("tiny", name, *fields)
        method = METHODS[name](**fields)
        arrays = {k: single(rng.standard_normal(tuple(v))) for k, v in shapes.items()}
        inputs = dict(
            x=single(rng.standard_normal((1, 2, 3))),
            W=single(rng.standard_normal((2, 3))),
            b=single(rng.standard_normal(2)),
        )
        roles = dict(x="input", W="base", b="base") | dict.fromkeys(arrays, "array")
        variant = "rslora" if fields.get("rslora") else "plain"
        about: Arrays = dict(method=name, variant=variant, config=config_of(method))
        g = {"g.y": single(rng.standard_normal((1, 2, 2)))}
        made.append(finished(Case(check="forward", ask="forward", inputs={**inputs, **arrays}, roles=roles, **about)))
        made.append(
            finished(
                Case(
                    check="grad",
                    ask="vjp",
                    inputs={**inputs, **arrays, **g},
                    roles=roles | {"g.y": "cotangent"},
                    **about,
                )
            )
        )

    def told(a: np.ndarray, **more: Any) -> dict[str, Any]:
        return dict(shape=list(a.shape), values=[float(v).hex() for v in a.ravel()], **more)

    listed = [
        dict(
            id=f"tiny.{c.id}", ask=c.ask, method=c.method, config=dict(c.config), K=c.k,
            tensors={k: told(v, role=c.roles[k]) for k, v in c.inputs.items()},
            want={k: told(v, cond=c.cond[k]) for k, v in c.want.items()},
        )
        for c in made
    ]  # fmt: skip
    return dict(format=files.FORMAT, cases=listed)


def same_tiny(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two recordings of the tiny tier differ in nothing but rounding in another order."""

    def told(tier: Mapping[str, Any]) -> Any:
        return {**tier, "cases": [{**c, "want": {k: v["shape"] for k, v in c["want"].items()}} for c in tier["cases"]]}

    return told(one) == told(other) and all(
        abs(float.fromhex(a) - float.fromhex(b)) <= 8 * 2.0**-53 * want["cond"]
        for c, d in zip(one["cases"], other["cases"], strict=True)
        for name, want in c["want"].items()
        for a, b in zip(want["values"], d["want"][name]["values"], strict=True)
    )
