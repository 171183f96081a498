"""Every law of every method on a device. In a file of their own, the last by name: a run on a GPU that must end early has the rest."""

import numpy as np
import pytest
from both import FEW, on

from minipeft.conformance import laws, tiny
from minipeft.method import METHODS, load_methods

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
LIGHT = [(n, "bert" if n == "bitfit" else "llama", np.float64) for n in FEW]
ALL = [(n, f, d) for d in (np.float64, np.float32) for f in tiny.ARCHS for n in SHIPPED]


@pytest.mark.parametrize("device, name, family, dtype", on(LIGHT, ALL, every=3), indirect=["device"])
def test_every_law_holds(device, name, family, dtype):
    verdicts = list(laws.check(METHODS[name], [family], dtype))
    assert not [f"{v.law}: {v.reason}" for v in verdicts if v.outcome == "fail"]
    if all(v.outcome == "n/a" for v in verdicts):
        pytest.skip(f"{name} does not fit {family}")
