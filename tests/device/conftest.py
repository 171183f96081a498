"""The backend a test runs on, and the page that a run on a real GPU leaves behind.

A test that takes `device` runs on the stand-in for CuPy in the default suite, and on CuPy where it is marked `gpu`:
`python -m pytest -m gpu tests/device` runs those, and writes docs/gpu.md (or gpu.md and gpu.log in the folder OUT).
MINIPEFT_GPU_BACKEND=strict runs them on the stand-in, MINIPEFT_GPU_SECONDS ends a run that takes longer in good order.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from minipeft.engine import backend, use

backend.add("strict")  # strict.py beside this file

STARTED = time.monotonic()
GPU = os.environ.get("MINIPEFT_GPU_BACKEND", "cupy")


@pytest.fixture
def device(request):
    """The backend of this parameter, "strict" or "cupy": its module. Afterwards the backend is NumPy again."""
    wanted = GPU if request.param == "cupy" else request.param
    if request.param == "cupy" and time.monotonic() - STARTED > float(os.environ.get("MINIPEFT_GPU_SECONDS", "inf")):
        pytest.skip("no time is left in this run")
    use(wanted)
    yield backend.xp._module
    use("numpy")


@pytest.fixture
def measured(record_property):
    """Notes err/(u·cond) of a comparison for the page: measured(group, ratio, dtype)."""
    return lambda group, ratio, dtype="float64": record_property("ratio", (group, str(np.dtype(dtype)), float(ratio)))


class Page:
    """Collects what the tests of a GPU run report, and writes the page when it ends."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.ratios: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.notes: dict[str, str] = {}
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or (report.when == "setup" and not report.passed):
            name = report.nodeid.rpartition("::")[2].partition("[")[0]
            self.counts[name.removeprefix("test_").replace("_", " ")][report.outcome] += 1
            for key, value in report.user_properties:
                if key == "ratio":
                    group, dtype, ratio = value
                    self.ratios[group][dtype].append(ratio)
                else:
                    self.notes[key] = value
            if report.failed:
                told = str(report.longrepr).splitlines()[-25:]
                self.failures.append("\n".join([report.nodeid, *told, ""]))

    def pytest_sessionfinish(self, session):
        if not self.counts:
            return
        text = self.markdown()
        print("\n\n" + text)
        out = os.environ.get("OUT")
        if out or GPU == "cupy":  # a page of the stand-in is nothing to keep
            folder = Path(out) if out else Path(__file__).parents[2] / "docs"
            (folder / "gpu.md").write_text(text, encoding="utf-8")
        if out:
            (Path(out) / "gpu.log").write_text("\n".join(self.failures) or "no failures\n", encoding="utf-8")

    def markdown(self) -> str:
        lines = ["# On a GPU", "", "Written by `python -m pytest -m gpu tests/device`.", "", about(), ""]
        lines += ["| tests | passed | failed | skipped |", "|---|---|---|---|"]
        for name, c in self.counts.items():
            lines.append(f"| {name} | {c['passed']} | {c['failed']} | {c['skipped']} |")
        total = [sum(c[k] for c in self.counts.values()) for k in ("passed", "failed", "skipped")]
        lines.append(f"| **all** | {total[0]} | {total[1]} | {total[2]} |")
        lines += ["", "Results against NumPy's: the largest err/(u·cond) of each group; 8 is allowed.", ""]
        lines += ["| group | comparisons | float64 | float32 |", "|---|---|---|---|"]
        for group, found in sorted(self.ratios.items()):
            worst = [f"{max(found[d]):.2g}" if d in found else "–" for d in ("float64", "float32")]
            lines.append(f"| {group} | {sum(map(len, found.values()))} | {worst[0]} | {worst[1]} |")
        lines += ["", *(f"{k}: {v}  " for k, v in sorted(self.notes.items())), ""]
        lines.append(f"The run took {time.monotonic() - STARTED:.0f} seconds.")
        return "\n".join(lines) + "\n"


def about() -> str:
    """The device and the versions."""
    import platform

    line = f"NumPy {np.__version__}, Python {platform.python_version()}"
    if GPU != "cupy":
        return f"The stand-in, {line}."
    try:
        import cupy

        runtime = cupy.cuda.runtime
        name = runtime.getDeviceProperties(0)["name"].decode()
    except Exception as why:  # the page is written all the same
        return f"The GPU does not answer: {why}; {line}."
    return f"{name}, CUDA runtime {runtime.runtimeGetVersion()}, driver {runtime.driverGetVersion()}, CuPy {cupy.__version__}, {line}."


def pytest_configure(config):
    chosen = config.getoption("-m") or ""
    if "gpu" in chosen and "not gpu" not in chosen and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Page(), "minipeft-gpu-page")
