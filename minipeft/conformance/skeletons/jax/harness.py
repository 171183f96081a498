"""LoRA in JAX, judged by recorded cases: README.md says how to run this, and how to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from minipeft.conformance.cases import Case, Unsupported

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")  # an accelerator may multiply in less than float32

Arrays = dict[str, Any]
Config = Mapping[str, Any]


class LoRA:
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ + s c. Tensors are handed over by the letters of the equations."""

    def scale(self, config: Config) -> float:
        r = config["r"]
        return config["alpha"] / (math.sqrt(r) if config["rslora"] else r)

    def forward(
        self, config: Config, x: Any, W: Any, b: Any, A: Any, B: Any, c: Any = None, keep: Any = None
    ) -> Arrays:
        """y, and on the way there what a trace holds."""
        seen = x if keep is None else x * keep / (1 - config["dropout"])  # a training pass, with its dropout mask
        base = x @ W.T + b
        h = seen @ A.T
        low = h @ B.T
        y = base + self.scale(config) * (low if c is None else low + c)
        return {"0.base": base, "1.h": h, "2.low": low, "6.y": y}

    def merged(self, config: Config, W: Any, b: Any, A: Any, B: Any, c: Any = None) -> tuple[Any, Any]:
        s = self.scale(config)
        return W + s * (B @ A), b if c is None else b + s * c


METHODS: dict[str, Any] = {"lora": LoRA()}  # a method more is an entry more


def given(case: Case, *roles: str) -> Arrays:
    """The tensors of some roles, as arrays of JAX."""
    return {k: jnp.asarray(v) for k, v in case.named(*roles).items()}


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
        return dict(y=self.method(case).forward(case.config, **given(case, "input", "base", "array", "stored"))["6.y"])

    def vjp(self, case: Case) -> Arrays:
        """The gradients of Σ g·y, by every input and every trained array."""
        method, fixed = self.method(case), given(case, "base", "stored")
        moving = given(case, "input", "array")
        _, back = jax.vjp(lambda moving: method.forward(case.config, **moving, **fixed)["6.y"], moving)
        return back(jnp.asarray(case.tensors["g.y"]))[0]

    def merge(self, case: Case) -> Arrays:
        W, b = self.method(case).merged(case.config, **given(case, "base", "array", "stored"))
        return dict(W=W, b=b)

    def delta(self, case: Case) -> Arrays:
        return dict(delta=self.merge(case)["W"] - case.tensors["W"])

    def trace(self, case: Case) -> Arrays:
        """The intermediates of the outputs, for `minipeft verify bisect`."""
        return self.method(case).forward(case.config, **given(case, "input", "base", "array", "stored")) | {
            "5.merged": self.merge(case)["W"]
        }


implementation = Harness()
