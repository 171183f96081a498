"""Cases of methods that libraries put on tables, sum, and merge into weights of half precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from minipeft.conformance import cases as files
from minipeft.conformance import docstrings, places
from minipeft.conformance.cases import Case
from minipeft.conformance.own import config_of
from minipeft.conformance.places import Arrays, Place, arrays_at
from minipeft.conformance.record.one import finished, generator, inputs_of, moved, single
from minipeft.conformance.record.variants import readings
from minipeft.method import Method
from minipeft.settings import part_of


def drawn(
    cls: type[Method], variant: str, method: Method, page: docstrings.Page, place: Place, rng: np.random.Generator
) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    """The inputs, the arrays as they start and in training, and what all cases of the variant say."""
    inputs = inputs_of(place, method, rng)
    start, trained = arrays_at(place, method, rng, inputs)
    arrays = moved(start, tuple(start) if part_of(cls) else trained, rng)
    roles = {k: "base" if k in place.given and k not in ("ids", "task_ids", "input_ids") else "input" for k in inputs}
    roles |= {k: "array" if k in trained else "stored" for k in arrays}
    about: Arrays = dict(
        method=cls.name, variant=variant, config=config_of(method), place=place.name, source=page.source,
        readings={f: str(getattr(method, f)) for f in readings(cls)}, equation=page.equations.strip("\n"), roles=roles,
    )  # fmt: skip
    return inputs, start, arrays, about


def on_a_table(cls: type[Method], method: Method, page: docstrings.Page) -> Iterator[Case]:
    """The method on a token table: outputs, gradients."""
    yield from _embedding(cls, method, page, "table", ("embedding",), ("forward", "grad"))


def on_a_tied_table(cls: type[Method], variant: str, method: Method, page: docstrings.Page) -> Iterator[Case]:
    """The method on a token table that is the output head too."""
    made = _embedding(cls, method, page, "tied", (variant,), (variant, f"{variant}_grad"))
    yield from (dataclasses.replace(case, since="0.2") for case in made)


def _embedding(
    cls: type[Method], method: Method, page: docstrings.Page, at: str, seed: tuple[str, ...], variants: tuple[str, str]
) -> Iterator[Case]:
    rng, place = generator(cls.name, *seed), places.PLACES[at]
    inputs, _, arrays, about = drawn(cls, variants[0], method, page, place, rng)
    forward = finished(Case(check="embedding", ask="forward", inputs={**inputs, **arrays}, **about))
    yield forward
    g = {f"g.{k}": single(rng.standard_normal(v.shape)) for k, v in forward.want.items()}
    about |= dict(variant=variants[1], roles=about["roles"] | dict.fromkeys(g, "cotangent"))
    yield finished(Case(check="embedding", ask="vjp", inputs={**inputs, **arrays, **g}, **about))


def sums(
    cls: type[Method], method: Any, inputs: Arrays, arrays: Arrays, about: Arrays, rng: np.random.Generator
) -> Iterator[Case]:
    """One adapter with weight 1, which must be that adapter; and two of different rank and scale, with other weights."""
    other = dataclasses.replace(method, r=3, alpha=7.0)
    fresh, trained = arrays_at(places.PLACES["linear"], other, rng, inputs)
    second = moved(fresh, trained, rng)
    one, two = ({f"{k}.{i}": v for k, v in a.items()} for i, a in enumerate((arrays, second)))
    given = {k: "base" if k in ("W", "b") else "input" for k in inputs}
    for kind, members, weights, chosen in (
        ("identity", one, [1.0], [method]), ("two", one | two, [0.75, -1.25], [method, other]),
    ):  # fmt: skip
        variant = kind if about["variant"] == "usual" else f"{kind}-{about['variant']}"
        told = about | dict(
            variant=variant, roles=given | dict.fromkeys(members, "array"), inputs={**inputs, **members},
            options=dict(weights=weights, adapters=[config_of(m) for m in chosen]),
        )  # fmt: skip
        yield finished(Case(check="combine", ask="combine", **told))


def in_bfloat16(inputs: Arrays, arrays: Arrays, about: Arrays) -> Iterator[Case]:
    """Merging into a weight of bfloat16, and back; the adapter in bfloat16 too, or in float32."""
    for variant, also in (("usual", {k: files.bfloat16(v) for k, v in arrays.items()}), ("adapter_in_float32", arrays)):
        given = {k: files.bfloat16(v) for k, v in inputs.items()} | also
        told = about | dict(
            variant=variant, inputs=given, options=dict(adapter="bfloat16" if variant == "usual" else "float32")
        )
        merged = finished(Case(check="merge_bfloat16", ask="merge_bfloat16", **told))
        yield dataclasses.replace(merged, tolerance="ROUND1")
        base = {k: given[k] for k in ("W", "b")}
        yield dataclasses.replace(
            Case(check="unmerge_bfloat16", ask="unmerge_bfloat16", **told), tolerance="EXACT", want=base,
            cond=dict.fromkeys(base, 0.0), witnesses=("the base", "the definition"),
        )  # fmt: skip
