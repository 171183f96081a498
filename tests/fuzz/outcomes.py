"""What may become of an input drawn at or beyond the edge: it is computed, or refused in one line. Nothing else."""

import time
import traceback
import warnings

import numpy as np

from minipeft.errors import Bad

SLOW = 20.0  # seconds after which a computation on a tiny model counts as hanging


def outcome(f):
    """("computed", what f gives), ("refused", the line), or ("defect", where and why)."""
    started = time.perf_counter()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = f()
    except Bad as why:
        line = str(why)
        return ("refused", line) if "\n" not in line and 10 < len(line) < 600 else ("defect", f"not one line: {line!r}")
    except Exception as why:
        at = traceback.extract_tb(why.__traceback__)[-1]
        return "defect", f"{type(why).__name__} at {at.filename.rpartition('/')[2]}:{at.lineno}: {why}"
    if (seconds := time.perf_counter() - started) > SLOW:
        return "defect", f"took {seconds:.0f} s"
    wrong = [name for name, x in found.items() if not np.isfinite(x).all()]
    return ("defect", f"not finite: {', '.join(wrong[:3])}") if wrong else ("computed", found)


def tally(cases):
    """How many cases of each outcome; raises AssertionError that lists the defects, by kind."""
    counts, defects = {"computed": 0, "refused": 0}, {}
    for drawn, f in cases:
        kind, what = outcome(f)
        if kind == "defect":
            defects.setdefault(what[:100], []).append(drawn)
        else:
            counts[kind] += 1
    listed = "\n".join(f"{len(found):4} × {what}\n       {found[0]}" for what, found in defects.items())
    assert not defects, f"{sum(map(len, defects.values()))} defects beside {counts}:\n{listed}"
    return counts
