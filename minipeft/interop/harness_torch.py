"""What harnesses of torch libraries share: a module of theirs on one case, its outputs, gradients and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case, Unsupported

Arrays = dict[str, Any]


def torch_of(case: Case) -> Any:
    """torch, its default dtype that of the case. Raises `Unsupported` where it is not installed."""
    try:
        import torch
    except ImportError:
        raise Unsupported("torch is not installed") from None
    torch.set_default_dtype(torch.float64 if case.dtype == np.float64 else torch.float32)
    torch.set_num_threads(1)
    return torch


def mask(case: Case) -> Any:
    """In place of a dropout: multiplies by the mask that the case gives."""
    torch: Any = torch_of(case)
    factor = torch.tensor(case.tensors["keep"] / (1 - case.config["dropout"]))

    class Mask(torch.nn.Module):  # type: ignore[name-defined]
        def forward(self, x: Any) -> Any:
            return x * factor

    return Mask()


@dataclass
class Layer:
    """A library's module: `parameters` are its trained ones under our names; `turned` those it holds transposed."""

    module: Any
    parameters: Mapping[str, Any]
    turned: tuple[str, ...] = ()
    call: Callable[[Any], Any] | None = None

    def __call__(self, x: Any) -> Any:
        return (self.call or self.module)(x)

    def ours(self, name: str, a: Any) -> np.ndarray:
        """An array of the library in our layout."""
        a = a.detach().numpy()
        return np.ascontiguousarray(a.T if name in self.turned else a)


class TorchLibrary:
    """An implementation by modules of torch: a subclass gives `layer(case)`, with the arrays of the case in place."""

    def layer(self, case: Case) -> Layer:
        raise Unsupported("this method is not there")

    def put(self, case: Case, parameter: Any, name: str, turned: bool = False) -> Any:
        """Set a parameter to an array of the case."""
        torch = torch_of(case)
        a = case.tensors[name]
        with torch.no_grad():
            parameter.copy_(torch.tensor(np.ascontiguousarray(a.T if turned else a)).reshape(parameter.shape))
        return parameter

    def input(self, case: Case) -> Any:
        return torch_of(case).tensor(case.tensors["ids" if case.place == "table" else "x"])

    def forward(self, case: Case) -> Arrays:
        layer = self.layer(case)
        with torch_of(case).no_grad():
            return dict(y=layer(self.input(case)).numpy())

    def vjp(self, case: Case) -> Arrays:
        torch, layer, x = torch_of(case), self.layer(case), self.input(case)
        wanted = dict(layer.parameters)
        for p in wanted.values():
            p.requires_grad_()
        if x.dtype.is_floating_point:
            wanted["x"] = x.requires_grad_()
        total = (layer(x) * torch.tensor(case.tensors["g.y"])).sum()
        grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        return {
            k: layer.ours(k, torch.zeros_like(p) if g is None else g)
            for (k, p), g in zip(wanted.items(), grads, strict=True)
        }

    def train(self, case: Case) -> Arrays:
        """The given optimiser by its equations, on the library's gradients."""
        torch, layer, x = torch_of(case), self.layer(case), self.input(case)
        target, o = torch.tensor(case.tensors["target.y"]), case.options["optimiser"]
        theta = dict(layer.parameters)
        m = {k: torch.zeros_like(p) for k, p in theta.items()}
        v = {k: torch.zeros_like(p) for k, p in theta.items()}
        for p in theta.values():
            p.requires_grad_()
        for t in range(1, o["steps"] + 1):
            grads = torch.autograd.grad((0.5 * (layer(x) - target) ** 2).sum(), list(theta.values()))
            with torch.no_grad():
                for (k, p), g in zip(theta.items(), grads, strict=True):
                    if o["kind"] == "sgd":
                        m[k] = o["momentum"] * m[k] + g
                        step = m[k]
                    else:
                        m[k] = o["beta1"] * m[k] + (1 - o["beta1"]) * g
                        v[k] = o["beta2"] * v[k] + (1 - o["beta2"]) * g * g
                        step = (m[k] / (1 - o["beta1"] ** t)) / ((v[k] / (1 - o["beta2"] ** t)).sqrt() + o["eps"])
                    p.sub_(o["lr"] * (step + o["weight_decay"] * p))
        return {k: layer.ours(k, p) for k, p in theta.items()} | dict(W=self.base_weight(layer).detach().numpy())

    def base_weight(self, layer: Layer) -> Any:
        """The frozen weight."""
        return layer.module.weight

    def merged(self, layer: Layer) -> Arrays:
        """Weight and bias, as torch tensors, after the layer has merged its adapter."""
        raise Unsupported("it does not merge")

    def unmerged(self, layer: Layer) -> Arrays:
        """Weight and bias after merging and taking the adapter out."""
        raise Unsupported("it does not take a merged adapter out")

    def after(self, case: Case, done: Callable[[Layer], Arrays], half: bool = False) -> Arrays:
        """What a layer holds after merging or unmerging, as arrays of the dtype asked for; in bfloat16 if `half`."""
        torch, layer = torch_of(case), self.layer(case)
        if half:
            given = {k: p.detach().clone() for k, p in layer.parameters.items()}
            for module in self.modules(layer):
                module.to(torch.bfloat16)
            for k, p in layer.parameters.items() if case.options["adapter"] == "float32" else ():
                p.data = given[k].float()
        with torch.no_grad():
            return {k: v.detach().double().numpy().astype(case.dtype) for k, v in done(layer).items()}

    def modules(self, layer: Layer) -> tuple[Any, ...]:
        """All torch modules of a layer."""
        return (layer.module,)

    def merge(self, case: Case) -> Arrays:
        return self.after(case, self.merged)

    def unmerge(self, case: Case) -> Arrays:
        return self.after(case, self.unmerged)

    def merge_bfloat16(self, case: Case) -> Arrays:
        return self.after(case, self.merged, half=True)

    def unmerge_bfloat16(self, case: Case) -> Arrays:
        return self.after(case, self.unmerged, half=True)

    def delta(self, case: Case) -> Arrays:
        return dict(delta=self.merge(case)["W"] - case.tensors["W"])
