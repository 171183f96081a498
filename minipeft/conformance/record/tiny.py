"""The tiny tier: a few cases of a handful of numbers each, as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minipeft.conformance import cases as files
from minipeft.conformance.cases import Case
from minipeft.conformance.own import config_of
from minipeft.conformance.places import Arrays
from minipeft.conformance.record.one import finished, generator, single
from minipeft.conformance.witnesses import tiny_of
from minipeft.method import METHODS


def tiny(names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """A few cases of a handful of numbers each, of some methods or all, as plain JSON with C99 hexadecimal floats."""
    made = []
    settings = [(name, *one) for name in sorted(names or METHODS) for one in tiny_of(name)]
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
        variant = _variant(fields, tiny_of(name)[0][0])
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

    return [
        dict(
            id=f"tiny.{c.id}", ask=c.ask, method=c.method, config=dict(c.config), K=c.k,
            tensors={k: told(v, role=c.roles[k]) for k, v in c.inputs.items()},
            want={k: told(v, cond=c.cond[k]) for k, v in c.want.items()},
        )
        for c in made
    ]  # fmt: skip


def _variant(fields: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """The name of settings: "plain" of a method's first, of others what they have that the first has not."""
    others = {k: v for k, v in fields.items() if k not in first or first[k] != v}
    return "-".join(k if v is True else f"{k}={v}" for k, v in others.items()) or "plain"


def tiny_text(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The file of these cases, method by method."""
    listed = sorted(rows, key=lambda row: row["method"])
    return (json.dumps(dict(format=files.FORMAT, cases=listed), indent=1, sort_keys=True) + "\n").encode()


def same_rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two recordings of a case differ in nothing but rounding in another order."""

    def told(row: Mapping[str, Any]) -> Any:
        return {**row, "want": {k: v["shape"] for k, v in row["want"].items()}}

    return told(one) == told(other) and all(
        abs(float.fromhex(a) - float.fromhex(b)) <= 8 * 2.0**-53 * want["cond"]
        for name, want in one["want"].items()
        for a, b in zip(want["values"], other["want"][name]["values"], strict=True)
    )
