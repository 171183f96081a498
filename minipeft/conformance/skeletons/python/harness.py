"""LoRA in NumPy, judged by recorded cases: README.md says how to run this, and how to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case, Unsupported

Arrays = dict[str, Any]
Config = Mapping[str, Any]


def rows(a: np.ndarray) -> np.ndarray:
    """All axes but the last as one."""
    return a.reshape(-1, a.shape[-1])


class LoRA:
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ + s c, by hand. Tensors are handed over by the letters of the equations."""

    def scale(self, config: Config) -> float:
        r = config["r"]
        return config["alpha"] / (math.sqrt(r) if config["rslora"] else r)

    def seen(self, config: Config, x: Any, keep: Any) -> Any:
        """x as A sees it: with its dropout mask, if there is one."""
        return x if keep is None else x * keep / (1 - config["dropout"])

    def forward(
        self, config: Config, x: Any, W: Any, b: Any, A: Any, B: Any, c: Any = None, keep: Any = None
    ) -> Arrays:
        """y, and on the way there what a trace holds."""
        base = x @ W.T + b
        h = self.seen(config, x, keep) @ A.T
        low = h @ B.T
        y = base + self.scale(config) * (low if c is None else low + c)
        return {"0.base": base, "1.h": h, "2.low": low, "6.y": y}

    def vjp(
        self, config: Config, g: Any, x: Any, W: Any, b: Any, A: Any, B: Any, c: Any = None, keep: Any = None
    ) -> Arrays:
        """The gradients of Σ g·y."""
        s, seen = self.scale(config), self.seen(config, x, keep)
        low = s * (g @ B)  # the gradient by x Aᵀ
        grads = dict(
            x=g @ W + self.seen(config, low @ A, keep),
            A=rows(low).T @ rows(seen),
            B=s * (rows(g).T @ rows(seen @ A.T)),
        )
        return grads if c is None else grads | dict(c=s * rows(g).sum(axis=0))

    def merged(self, config: Config, W: Any, b: Any, A: Any, B: Any, c: Any = None) -> tuple[Any, Any]:
        s = self.scale(config)
        return W + s * (B @ A), b if c is None else b + s * c


METHODS: dict[str, Any] = {"lora": LoRA()}  # a method more is an entry more


class Harness:
    """A function for every ask; an ask without one is answered `unsupported`."""

    def info(self) -> dict[str, Any]:
        return dict(
            name="mine", version="0.1", language="Python", dtypes=["float64", "float32"], methods=list(METHODS), readings={}
        )  # fmt: skip

    def method(self, case: Case) -> Any:
        if case.place != "linear":
            raise Unsupported(f"the place {case.place} is not there")
        if case.method not in METHODS:
            raise Unsupported(f"{case.method} is not there")
        return METHODS[case.method]

    def forward(self, case: Case) -> Arrays:
        given = case.named("input", "base", "array", "stored")
        return dict(y=self.method(case).forward(case.config, **given)["6.y"])

    def vjp(self, case: Case) -> Arrays:
        given = case.named("input", "base", "array", "stored")
        return self.method(case).vjp(case.config, case.tensors["g.y"], **given)

    def merge(self, case: Case) -> Arrays:
        W, b = self.method(case).merged(case.config, **case.named("base", "array", "stored"))
        return dict(W=W, b=b)

    def delta(self, case: Case) -> Arrays:
        return dict(delta=self.merge(case)["W"] - case.tensors["W"])

    def trace(self, case: Case) -> Arrays:
        """The intermediates of the outputs, for `minipeft verify bisect`."""
        given = case.named("input", "base", "array", "stored")
        return self.method(case).forward(case.config, **given) | {"5.merged": self.merge(case)["W"]}


implementation = Harness()
