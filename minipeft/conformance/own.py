"""minipeft itself as an implementation under test: what the recorded cases were computed with, and the mutants start from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import minipeft
from minipeft.arrays import rate
from minipeft.checkpoints.native import decode, encode
from minipeft.conformance.acting import bias_of, held
from minipeft.conformance.cases import Case, Rejected, Unsupported, bfloat16
from minipeft.conformance.places import Arrays, Place, arrays_at, place_at
from minipeft.engine import ops, value_and_grad
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.tensor import Tensor, value
from minipeft.errors import Bad
from minipeft.interop.peft.layer import load_layer, load_whole, save_layer
from minipeft.method import METHODS, Method, Step, is_weight, load_methods, weight_of
from minipeft.train import SGD, AdamW
from minipeft.train.optimisers import clipped


def method_of(case: Case) -> Method:
    """The method of a case, with its configuration."""
    load_methods()
    return decode({"method": case.method, **case.config})


def config_of(method: Method) -> dict[str, Any]:
    """The configuration of a method, for case.json: all fields but where it attaches."""
    encoded = encode(method)
    return {k: v for k, v in encoded.items() if k not in ("method", "targets")}


STEPS = ("base", "h", "low", "V", "norm", "merged", "y")  # the intermediates that a trace may hold


def placed(arrays: Arrays) -> Arrays:
    """Arrays of the host on the device; Tensors stay what they are."""
    return {k: v if type(v) is Tensor else to_device(v) for k, v in arrays.items()}


def fetched(arrays: Arrays) -> Arrays:
    """The plain arrays, on the host."""
    return {k: to_host(value(v)) for k, v in arrays.items()}


def as_asked(case: Case, method: Method, arrays: Arrays) -> Case:
    """The case, as it would be if the outputs of this method with these arrays were asked for."""
    given = case.named("input", "base")
    roles = {k: case.roles[k] for k in given} | dict.fromkeys(arrays, "array")
    asked = dict(
        ask="forward", method=method.name, config=config_of(method), inputs=given | fetched(arrays), roles=roles
    )
    return dataclasses.replace(case, **asked)  # type: ignore[arg-type]


class Own:
    """Every ask, by the engine and the methods' own files."""

    asks: frozenset[str] = (
        frozenset()
    )  # of a mutant: what alone it answers otherwise, none if that is told by its functions

    def info(self) -> dict[str, Any]:
        load_methods()
        names = [n for n, c in METHODS.items() if c.__module__.startswith("minipeft.")]
        return dict(
            name="minipeft",
            version=minipeft.__version__,
            language="Python",
            dtypes=["float64", "float32"],
            methods=sorted(names),
        )

    def method(self, case: Case) -> Method:
        return method_of(case)

    def place(self, case: Case) -> Place:
        return place_at(case.place, case.inputs)

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        """The outputs at the case's place."""
        return self.place(case).call(self.method(case), placed(inputs), placed(arrays))

    def forward(self, case: Case) -> Arrays:
        return fetched(self.outputs(case, case.named("input", "base"), case.named("array", "stored")))

    def vjp(self, case: Case) -> Arrays:
        moving = placed({k: v for k, v in case.named("input", "array").items() if v.dtype.kind == "f"})
        fixed, g = placed(case.named("base", "stored")), placed(case.named("cotangent"))
        ids = {k: v for k, v in case.named("input").items() if v.dtype.kind != "f"}

        def f(theta: Arrays) -> Any:
            every = {**fixed, **ids, **theta}
            inputs = {k: every[k] for k in every if case.roles[k] in ("input", "base")}
            out = self.outputs(case, inputs, {k: every[k] for k in every if case.roles[k] in ("array", "stored")})
            total: Any = 0.0
            for name, y in out.items():
                total = total + ops.sum(y * g[f"g.{name}"])
            return total

        return fetched(value_and_grad(f)(moving)[1])

    def merge(self, case: Case) -> Arrays:
        method, own = self.method(case), placed(case.named("array", "stored"))
        base = placed(case.named("base"))
        if not is_weight(method):
            raise Unsupported(f"{method.name} does not merge")
        if case.place == "bias":
            return fetched(dict(W=base["W"], b=weight_of(method, base["b"], own)))
        W = held(method, base["W"])
        merged = dict(W=weight_of(method, W, own))
        if "b" in base and (b := bias_of(method, base["b"], own, W)) is not None:
            merged["b"] = b
        return fetched(merged)

    def delta(self, case: Case) -> Arrays:
        return dict(delta=self.merge(case)["W"] - to_host(held(self.method(case), to_device(case.tensors["W"]))))

    def unmerge(self, case: Case) -> Arrays:
        self.merge(case)  # returns new arrays: the base was never written to
        return case.named("base")

    def merge_bfloat16(self, case: Case) -> Arrays:
        wide = dataclasses.replace(case, dtype=np.float64)
        return {k: bfloat16(v).astype(case.dtype) for k, v in self.merge(wide).items()}

    def unmerge_bfloat16(self, case: Case) -> Arrays:
        return self.unmerge(case)

    def adapter(self, case: Case, i: int) -> tuple[Method, Arrays]:
        """One of the adapters that are summed."""
        method = decode({"method": case.method, **case.options["adapters"][i]})
        return method, {k[: -len(f".{i}")]: v for k, v in case.named("array").items() if k.endswith(f".{i}")}

    def combine(self, case: Case) -> Arrays:
        inputs = placed(case.named("input", "base"))
        base = y = fetched(dict(y=ops.linear(inputs["x"], inputs["W"], inputs["b"])))["y"]
        for i, weight in enumerate(case.options["weights"]):
            method, arrays = self.adapter(case, i)
            y = y + weight * (self.forward(as_asked(case, method, arrays))["y"] - base)
        return dict(y=y)

    def init(self, case: Case) -> Arrays:
        arrays, _ = arrays_at(self.place(case), self.method(case), np.random.default_rng(case.seed), case.tensors)
        return {k: v.astype(case.dtype) if v.dtype.kind == "f" else v for k, v in arrays.items()}

    def draw(self, case: Case) -> Arrays:
        each = [self.init(dataclasses.replace(case, seed=case.seed + i)) for i in range(case.options["times"])]
        return {k: np.stack([a[k] for a in each]) for k in case.options["shapes"]}

    def optimiser(self, kind: str) -> Any:
        """The optimiser of this name."""
        return {"sgd": SGD, "adamw": AdamW}[kind]

    def train(self, case: Case) -> Arrays:
        return self.trained(case)

    def fit(self, case: Case) -> Arrays:
        return self.trained(case, whole=True)

    def trained(self, case: Case, whole: bool = False) -> Arrays:
        """The arrays after some steps; with `whole` of all that belongs to the method's training, not of its outputs alone."""
        theta, target = placed(case.named("array")), placed(case.named("target"))
        fixed, inputs = placed(case.named("stored")), placed(case.named("input", "base"))
        settings = dict(case.options["optimiser"])
        steps, kind, limit = settings.pop("steps"), settings.pop("kind"), settings.pop("clip", None)
        optimiser: Any = self.optimiser(kind)(**settings)
        method, site = self.method(case), self.place(case).sites[0].name
        rates = {k: optimiser.lr * (self.rate(method, k) if whole else 1.0) for k in theta}
        state, own = optimiser.init(theta), dict[str, Any]()

        def f(theta: Arrays) -> Any:
            total: Any = 0.0
            for name, y in self.outputs(case, inputs, {**fixed, **theta}).items():
                off = y - target[f"target.{name}"]
                total = total + 0.5 * ops.sum(off * off)
            more = self.penalty(method, {site: theta}) if whole else None
            return total if more is None else total + more

        for t in range(1, steps + 1):
            grads = {k: value(g) for k, g in value_and_grad(f)(theta)[1].items()}
            if whole:
                step = Step(t, steps, {site: dict(theta)}, {site: grads}, {site: fixed}, own)
                self.after_backward(method, step)
                grads = step.grads[site]
            if limit is not None:
                grads = self.clipped(grads, limit)
            theta, state = optimiser.step(theta, grads, state, t, rates)
            if whole:
                step = Step(t, steps, {site: dict(theta)}, {site: grads}, {site: fixed}, own)
                self.after_step(method, step)
                theta = step.theta[site]
        return fetched(theta) | {k: v for k, v in case.named("base").items() if k == "W"}

    # what belongs to the training of a method beside its outputs

    def rate(self, method: Method, name: str) -> float:
        """The factor on an array's learning rate."""
        return rate(method, name)

    def penalty(self, method: Method, arrays: dict[str, Arrays]) -> Any:
        """What is added to the loss."""
        return method.penalty(arrays)

    def after_backward(self, method: Method, step: Step) -> None:
        method.after_backward(step)

    def after_step(self, method: Method, step: Step) -> None:
        method.after_step(step)

    def clipped(self, grads: Arrays, limit: float) -> Arrays:
        """The gradients, clipped."""
        return clipped(grads, limit)

    def trace(self, case: Case) -> Arrays:
        """Intermediates of the outputs of a linear, in the order of their names: docs/format.md, section 8."""
        if case.place != "linear" or "keep" in case.inputs:
            return {}
        method, t = self.method(case), case.named("input", "base", "array", "stored")
        steps = dict(base=t["x"] @ to_host(held(method, to_device(t["W"]))).T + t["b"])
        if {"A", "B"} <= t.keys():
            steps["h"] = t["x"] @ t["A"].T
            steps["low"] = steps["h"] @ t["B"].T
        if "m" in t:
            steps["V"] = t["W"] + method.scale * (t["B"] @ t["A"])  # type: ignore[attr-defined]
            steps["norm"] = np.linalg.norm(steps["V"], axis=1)
        if is_weight(method):
            steps["merged"] = self.merge(case)["W"]
        steps["y"] = self.forward(case)["y"]
        return {f"{STEPS.index(name)}.{name}": a for name, a in steps.items()}

    def quantize(self, case: Case) -> Arrays:
        method, W = self.method(case), case.tensors["W"].astype(np.float32)
        found = method.quantized(W)  # type: ignore[attr-defined]
        return dict(codes=to_host(found.codes), absmax=to_host(found.absmax).astype(case.dtype))

    def dequantize(self, case: Case) -> Arrays:
        return fetched(dict(W=held(self.method(case), to_device(case.tensors["W"]))))

    def load(self, case: Case) -> Arrays:
        try:
            method, arrays = load_layer(case)
            whole = self.whole(case)
        except Bad as why:
            raise Rejected(str(why)) from None
        asked = as_asked(case, method, arrays)
        return self.forward(dataclasses.replace(asked, inputs={**asked.inputs, **whole}))

    def whole(self, case: Case) -> Arrays:
        """What files hold of other modules."""
        return load_whole(case)

    def save(self, case: Case) -> Arrays:
        return save_layer(self.method(case), case.named("array", "stored"))


implementation = Own()
