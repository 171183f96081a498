"""Cases of arrays as training starts, where they are computed from the weight, a gradient or data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from minipeft.conformance import cases as files
from minipeft.conformance.cases import Case
from minipeft.conformance.places import Arrays
from minipeft.conformance.record.one import OWN, agree, conditions


def started(case: Case, name: str, witness: Callable[..., np.ndarray]) -> Case:
    """The arrays as training starts, where they are computed: what does not depend on the signs of singular vectors."""

    def told(case: Case) -> np.ndarray:
        found = OWN.init(case)
        return found[name] if name in found else files.derived(name, found)

    done = dataclasses.replace(case, want={name: told(case)}, cond=conditions(case, lambda c: {name: told(c)}))
    if done.want[name].dtype.kind != "f":  # places
        done = dataclasses.replace(done, tolerance="EXACT", cond={name: 0.0})
        agree(done, {name: witness(OWN.method(case), case.inputs)}, "places found one by one")
        return dataclasses.replace(done, witnesses=("the method's own file", "found one by one"))
    if name not in OWN.init(case):  # made of a singular value decomposition
        about: Arrays = dict(tolerance="SUBSPACE", variant="in_norm", since="0.2")
        done = dataclasses.replace(done, cond={name: in_norm(case, told)}, **about)
    agree(done, {name: witness(OWN.method(case), case.inputs)}, "eigenvectors")
    return dataclasses.replace(
        done, witnesses=("the method's own file, in float64", "eigenvectors of the products, or sums of squares")
    )


def in_norm(case: Case, told: Callable[[Case], np.ndarray]) -> float:
    """How far the largest element moves for a change of the decomposed matrix M by ‖M‖, in whichever direction moves it most.

    A singular value decomposition is exact for a matrix nearby, ‖E‖ ≤ p u ‖M‖ with a small p: its error is relative to the
    norm and not to each element, and no few random changes find the direction that matters, that of a small gap. So the
    derivative by every element of M is measured, by central differences; a row of it has the length sought.
    """
    name = decomposed_of(case)
    M, step = case.inputs[name], 2.0**-20 * float(np.linalg.norm(case.inputs[name]))

    def at(change: np.ndarray) -> np.ndarray:
        return told(dataclasses.replace(case, inputs={**case.inputs, name: M + step * change.reshape(M.shape)}))

    slopes = np.array([(at(e) - at(-e)) / (2 * step) for e in np.eye(M.size)])
    return float(np.linalg.norm(slopes, axis=0).max() * np.linalg.norm(M))


def decomposed_of(case: Case) -> str:
    """The matrix that training starts from: data, a gradient, or the weight."""
    return next(k for k in ("X", "G", "W") if k in case.inputs)
