"""LoRA in PyTorch, judged by recorded cases: README.md says how to run this, and how to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from minipeft.conformance.cases import Case, Unsupported

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
    """The tensors of some roles, as tensors of PyTorch."""
    return {k: torch.tensor(v) for k, v in case.named(*roles).items()}


def held(tensors: Arrays) -> Arrays:
    """Tensors as arrays of NumPy, to be written."""
    return {k: v.detach().numpy() for k, v in tensors.items()}


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
        return held(
            dict(y=self.method(case).forward(case.config, **given(case, "input", "base", "array", "stored"))["6.y"])
        )

    def vjp(self, case: Case) -> Arrays:
        """The gradients of Σ g·y, by every input and every trained array."""
        method, moving = self.method(case), given(case, "input", "array")
        y = method.forward(
            case.config, **{k: v.requires_grad_() for k, v in moving.items()}, **given(case, "base", "stored")
        )["6.y"]
        found = torch.autograd.grad(y, list(moving.values()), torch.tensor(case.tensors["g.y"]))
        return held(dict(zip(moving, found, strict=True)))

    def merge(self, case: Case) -> Arrays:
        W, b = self.method(case).merged(case.config, **given(case, "base", "array", "stored"))
        return held(dict(W=W, b=b))

    def delta(self, case: Case) -> Arrays:
        return dict(delta=self.merge(case)["W"] - case.tensors["W"])

    def trace(self, case: Case) -> Arrays:
        """The intermediates of the outputs, for `minipeft verify bisect`."""
        steps = self.method(case).forward(case.config, **given(case, "input", "base", "array", "stored"))
        return held(steps) | {"5.merged": self.merge(case)["W"]}


implementation = Harness()
