"""Cases of how arrays are drawn: the moments of many numbers, by the law that the method's table says, or from many draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case
from minipeft.conformance.moments import MOMENTS, moment
from minipeft.conformance.places import WORDS, Arrays, Place, laws_at, place_at
from minipeft.conformance.record.one import OWN, generator, single
from minipeft.errors import Bad

TIMES = 32  # adapters whose numbers are taken together
MANY = 64  # times as many, where no law tells the moments
FEW = 200  # numbers of which no fourth power is asked for
K = 6.0  # standard deviations: of a thousand million right ones two fail
EXACT = 2.0**-20  # of what is not drawn: its rounding in float32, and that of a decomposition
UNIFORM = {n: 1 / (n + 1) for n in (2, 4, 6, 8)}  # moments on ±1
NORMAL = {2: 1.0, 4: 3.0, 6: 15.0, 8: 105.0}


def draws(about: Arrays, place: Place, given: Arrays, shapes: Mapping[str, list[int]]) -> Case:
    """How the trained arrays of these shapes are drawn, from the base and what is measured; of a token table too, where they begin with its rows."""
    case = Case(
        check="draw", ask="init", inputs=given, **(about | dict(roles=dict.fromkeys(given, "base"), since="0.2"))
    )
    table = single(generator(case.method, "table").standard_normal((WORDS, place.sites[0].arch.d)))
    begun = [OWN.init(dataclasses.replace(case, inputs=given | {"table": a})) for a in (table, 1 + table)]
    if any(not np.array_equal(begun[0][k], begun[1][k]) for k in shapes):
        case = dataclasses.replace(case, inputs=given | {"table": table}, roles={**case.roles, "table": "base"})
    return drawn(dataclasses.replace(case, ask="draw"), shapes)


def drawn(case: Case, shapes: Mapping[str, list[int]]) -> Case:
    """The case with the moments of every array."""
    case = dataclasses.replace(case, options=dict(times=TIMES, shapes=shapes), tolerance="DRAWN", k=K)
    laws = laws_at(place_at(case.place, case.inputs), OWN.method(case), case.tensors)
    found = OWN.draw(case)
    want: Arrays = {}
    cond: dict[str, float] = {}
    for name, a in found.items():
        if (law := laws.get(name)) is not None:
            told = of_law(*law, a.size)
        elif (a == a[0]).all():
            told = of_fixed(a)
        else:
            told = of_many(case, name)
        want |= {f"{name}.{k}": np.asarray(v) for k, (v, _) in told.items()}
        cond |= {f"{name}.{k}": s for k, (_, s) in told.items()}
    case = dataclasses.replace(case, want=want, cond=cond)
    for name, v in want.items():
        off = abs(float(moment(name, found)) - float(v))
        if not off <= K / 2 * cond[name]:
            raise Bad(f"{case.id}: {name} is {v} by its law, and off by {off} in {TIMES} adapters")
    return dataclasses.replace(
        case, witnesses=("the law in the method's table of arrays", f"the numbers of {TIMES} adapters")
    )


def of_law(kind: str, size: float, n: int) -> dict[str, tuple[float, float]]:
    """{moment: its value and standard deviation} of n numbers: uniform on ±size, or normal of that deviation."""
    m = UNIFORM if kind == "uniform" else NORMAL
    k = m[4] / m[2] ** 2
    # of the quotient of two means, to first order
    spread = (m[8] - m[4] ** 2) / m[2] ** 4 + 4 * k**2 * (k - 1) - 4 * k * (m[6] / m[2] ** 3 - k)
    square = m[2] * size**2
    out = dict(
        mean=(0.0, sqrt(square / n)), square=(square, square * sqrt((k - 1) / n)), kurtosis=(k, sqrt(spread / n))
    )
    return {name: it for name, it in out.items() if name != "kurtosis" or n >= FEW}


def of_fixed(a: np.ndarray) -> dict[str, tuple[float, float]]:
    """Of what is the same each time. A decomposition leaves signs open: then of squares alone."""
    constant = (a == a.flat[0]).all()
    return {
        name: (_short(MOMENTS[name](a)), EXACT * abs(float(MOMENTS[name](a))))
        for name in (("mean", "square") if constant else ("square",))
    }


def of_many(case: Case, name: str) -> dict[str, tuple[float, float]]:
    """Of what has no such law: from many draws, their spread from that of as many adapters as are taken together."""
    each = [
        OWN.draw(dataclasses.replace(case, seed=case.seed + TIMES * i, options={**case.options, "shapes": {name: ()}}))[
            name
        ]
        for i in range(1, MANY + 1)
    ]
    moments: dict[str, Any] = {
        k: np.array([f(a) for a in each]) for k, f in MOMENTS.items() if k != "kurtosis" or each[0].size >= FEW
    }
    return {
        k: (_short(v.mean()), _short(v.std() * (1 + 2 / sqrt(MANY)) + EXACT * abs(v.mean())))
        for k, v in moments.items()
    }


def _short(x: float) -> float:
    """To six digits, which no rounding in another order changes."""
    return float(f"{x:.6g}")
