"""How a result is judged: present, of the right shape and dtype, finite, and within K·u·cond of what is wanted.

PASS      as wanted                          FAIL   something else was computed
READING   as wanted in a reading declared    ERROR  nothing could be judged: a crash, a hang, garbage
SKIP      declared unsupported               N/A    a reading that this implementation does not have
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.conformance.acting import held
from minipeft.conformance.cases import Case, derived
from minipeft.conformance.moments import moment, shapes_of
from minipeft.conformance.own import Own
from minipeft.conformance.results import Result
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.tensor import value

UNIT = {np.dtype(np.float64): 2.0**-53, np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-11}


def judge(case: Case, got: Mapping[str, Any], result: Result) -> Result:
    """The result with its outcome, by what the implementation gave for the case."""
    if case.tolerance == "REJECT":
        return dataclasses.replace(result, outcome="FAIL", reason="accepted a file that does not fit")
    worst = result
    if case.tolerance == "SUBSPACE":
        if lost := {"A", "B"} - got.keys():
            reason = f"{', '.join(sorted(lost))} missing; found {', '.join(sorted(got)) or 'nothing'}"
            return dataclasses.replace(result, outcome="FAIL", reason=reason)
        if said := _no_factors(case, np.asarray(got["B"]), np.asarray(got["A"])):
            return dataclasses.replace(result, outcome="FAIL", reason=said)
        try:
            got = {name: derived(name, {k: np.asarray(v) for k, v in got.items()}) for name in case.want}
        except (ValueError, np.linalg.LinAlgError) as why:
            return dataclasses.replace(result, outcome="FAIL", reason=f"A and B do not fit: {why}")
    if case.tolerance == "DRAWN":
        if said := _not_drawn(case, got):
            return dataclasses.replace(result, outcome="FAIL", reason=said)
        with np.errstate(all="ignore"):
            got = {name: moment(name, got) for name in case.want}
    for name, want in case.want.items():
        if name not in got:
            near = ", ".join(sorted(got)) or "nothing"
            return dataclasses.replace(result, outcome="FAIL", tensor=name, reason=f"{name} is missing; found {near}")
        mine = np.asarray(got[name])
        if mine.shape != want.shape:
            reason = f"{name}: expected shape {want.shape}, found {mine.shape}"
            return dataclasses.replace(result, outcome="FAIL", tensor=name, reason=reason)
        if want.dtype.kind == "f" and mine.dtype != np.dtype(case.dtype) and case.tolerance != "DRAWN":
            reason = f"{name}: expected dtype {np.dtype(case.dtype)}, found {mine.dtype}"
            return dataclasses.replace(result, outcome="FAIL", tensor=name, reason=reason)
        if case.tolerance == "SHAPES":
            continue
        found = compared(case, name, mine, want, result)
        if found.ratio is not None and (worst.ratio is None or not found.ratio <= worst.ratio):
            worst = found
    if case.tolerance == "SHAPES" and case.options.get("identity"):
        worst = _identity(case, got, result)
    limit = case.k if case.tolerance in ("COND", "SUBSPACE", "DRAWN") else 8.0
    bad = worst.ratio is not None and not worst.ratio <= limit
    return dataclasses.replace(worst, outcome="FAIL" if bad else "PASS", reason=worst.reason if bad else "")


def _not_drawn(case: Case, got: Mapping[str, Any]) -> str:
    """Why arrays are not what so many adapters start with, '' if they are: names, shapes, dtypes, finite numbers."""
    for name, expected in shapes_of(case).items():
        if name not in got:
            return f"{name} is missing; found {', '.join(sorted(got)) or 'nothing'}"
        a = np.asarray(got[name])
        if a.shape != expected:
            return f"{name}: expected shape {expected}, found {a.shape}"
        if a.dtype != np.dtype(case.dtype):
            return f"{name}: expected dtype {np.dtype(case.dtype)}, found {a.dtype}"
        if not np.isfinite(a).all():
            return f"{name} has NaN or infinite values"
    return ""


def _no_factors(case: Case, B: np.ndarray, A: np.ndarray) -> str:
    """Why two arrays are no factors of a matrix of W's shape, '' if they are."""
    if {A.dtype, B.dtype} != {np.dtype(case.dtype)}:
        return f"A and B: expected dtype {np.dtype(case.dtype)}, found {A.dtype} and {B.dtype}"
    out, given = case.inputs["W"].shape
    r = A.shape[0] if A.ndim else 0
    if A.shape != (r, given) or B.shape != (out, r) or not 0 < r <= min(out, given):
        return f"A and B: expected shapes (r, {given}) and ({out}, r), found {A.shape} and {B.shape}"
    return ""


def compared(case: Case, name: str, mine: np.ndarray, want: np.ndarray, result: Result) -> Result:
    """The result with the worst element of one tensor."""
    off = abs(mine.astype(np.float64) - want)
    if not np.isfinite(mine.astype(np.float64)).all():
        worst = tuple(int(i) for i in np.argwhere(~np.isfinite(mine.astype(np.float64)))[0])
        return _at(result, name, worst, mine, want, float("inf"), f"{name} has NaN or infinite values")
    if not off.size:
        return dataclasses.replace(result, tensor=name, ratio=0.0)
    worst = tuple(int(i) for i in np.unravel_index(off.argmax(), off.shape))
    cond = case.cond.get(name, 0.0)
    unit = UNIT[np.dtype(case.dtype)] * cond if case.tolerance in ("COND", "SUBSPACE") else 0.0
    unit = cond if case.tolerance == "DRAWN" else unit
    error = float(off[worst])
    ratio = error / unit if unit else (0.0 if error == 0 else float("inf"))
    reason = f"{name} is off by {error:.3g}"
    if case.tolerance in ("EXACT", "ROUND1"):
        what = "not the nearest that the dtype has" if case.tolerance == "ROUND1" else "not the same"
        reason = f"{name}: {np.mean(off > 0):.0%} of the elements are {what}"
    return _at(result, name, worst, mine, want, ratio, reason)


def _at(
    result: Result, name: str, worst: tuple[int, ...], mine: np.ndarray, want: np.ndarray, ratio: float, reason: str
) -> Result:
    largest = float(abs(want).max()) if want.size else 0.0
    relative = abs(float(mine[worst]) - float(want[worst])) / largest if largest else float("inf")
    return dataclasses.replace(
        result, tensor=name, worst=worst, expected=float(want[worst]), found=float(mine[worst]), ratio=ratio,
        relative=relative, reason=reason,
    )  # fmt: skip


def _identity(case: Case, got: Mapping[str, Any], result: Result) -> Result:
    """Fresh arrays must leave the base as it is: what they compute, by minipeft, is the base's output."""
    own = Own()
    kept = {k: np.asarray(v, np.float64) for k, v in got.items() if k in case.want}
    start = own.init(dataclasses.replace(case, dtype=np.float64))
    arrays = {k: kept.get(k, v) for k, v in start.items()}
    rest = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in case.inputs.items()}
    after = own.outputs(case, rest, arrays)
    x, W, b = rest["x"], to_host(held(own.method(case), to_device(rest["W"]))), rest["b"]
    want = x @ W.T + b
    y = np.asarray(to_host(value(after["y"])))
    wide = dataclasses.replace(case, cond={"y": 4 * float((abs(x) @ abs(W).T).max() + abs(b).max())}, tolerance="COND")
    found = compared(wide, "y", y.astype(np.float64), want, result)
    return dataclasses.replace(found, reason="a fresh adapter changes the model")
