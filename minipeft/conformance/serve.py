"""Lets a Python object answer the protocol of docs/format.md: `python -m minipeft.conformance.serve module:object`.

What the object prints goes to standard error, so that standard output holds answers alone.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from minipeft.conformance import cases
from minipeft.conformance.cases import Rejected, Unsupported
from minipeft.limits import WORDS


def find(name: str) -> Any:
    """The object `module:object`, an instance if it is a class."""
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute or "implementation")
    return found() if isinstance(found, type) else found


def answer(implementation: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to one line."""
    if asked["do"] == "start":
        return dict(implementation.info())
    return dict(id=asked.get("id")) | _judged(implementation, asked)


def _judged(implementation: Any, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        case = cases.read(Path(asked["folder"]), np.dtype(asked.get("dtype", "float64")).type)
        ask = getattr(implementation, case.ask, None)
        if ask is None:
            raise Unsupported(f"{case.ask} is not there")
        save_file(_arrays(case.ask, ask(case)), asked["out"])
        if "trace" in asked and hasattr(implementation, "trace"):
            save_file(_arrays("trace", implementation.trace(case)), asked["trace"])
    except Unsupported as why:
        return dict(status="unsupported", reason=str(why), url=why.url)
    except Rejected as why:
        return dict(status="rejected", reason=str(why))
    except Exception as why:
        traceback.print_exc()
        last = traceback.extract_tb(why.__traceback__)[-1]
        said = (
            " ".join(str(why).split()) or f"at {Path(last.filename).name}, line {last.lineno}"
        )  # an assert says nothing
        return dict(status="error", reason=f"{type(why).__name__}: {said}"[:WORDS])
    return dict(status="done")


def _arrays(ask: str, given: Any) -> dict[str, np.ndarray]:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        found = f"keys {', '.join(map(repr, given))}" if isinstance(given, Mapping) else type(given).__name__
        raise TypeError(f"expected {ask} to give a dict of arrays by their names, found {found}")
    return {k: np.asarray(v, order="C") for k, v in given.items()}


def main(argv: list[str]) -> None:
    """Answer lines until `stop`."""
    out, sys.stdout = sys.stdout, sys.stderr
    implementation = find(argv[0])
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "stop":
            return
        print(json.dumps(answer(implementation, asked)), file=out, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, "")
    main(sys.argv[1:])
