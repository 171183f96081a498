"""Hugging Face PEFT on one torch linear or embedding: what its own layers compute, merge, initialise, train and load."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from minipeft.arrays import needs, rate
from minipeft.conformance.cases import Case, Rejected, Unsupported
from minipeft.conformance.own import STEPS, method_of
from minipeft.conformance.places import ARCH, PLACES, arrays_at, place_at
from minipeft.interop.harness_torch import mask
from minipeft.interop.peft.layer import arrays_of, config_of, tensors_of
from minipeft.interop.peft.registry import has, spec_named, spec_of, specs
from minipeft.interop.peft.spec import Spec
from minipeft.method import METHODS, Method, Site, load_methods

Arrays = dict[str, Any]


class Wide:
    """The torch module, but its float32 is float64: for layers that cast down inside."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.float32 = self.float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self.torch, name)


class Peft:
    """PEFT as an implementation. Its casts to float32 are redirected where float64 is asked for."""

    def __init__(self) -> None:
        self.ready: Any = None

    def info(self) -> dict[str, Any]:
        import peft

        load_methods()
        shipped = {n: c for n, c in METHODS.items() if c.__module__.startswith("minipeft.")}
        judged = [n for n, cls in sorted(shipped.items()) if has(cls) and spec_of(cls).on_layer]
        return dict(
            name="peft", version=peft.__version__, language="Python", dtypes=["float64", "float32"], methods=judged,
            readings={n: dict(s.readings) for n in judged if (s := spec_named(n)) and s.readings},
        )  # fmt: skip

    # --- one layer with an adapter

    def torch(self, case: Case) -> Any:
        """torch, set up for the dtype of the case."""
        import torch

        if self.ready != case.dtype:
            wide = case.dtype == np.float64
            for module in sorted({m for s in specs().values() for m in s.wide}):
                setattr(import_module(module), "torch", Wide(torch) if wide else torch)  # noqa: B010
            torch.set_default_dtype(torch.float64 if wide else torch.float32)
            torch.set_num_threads(1)
            if wide:
                torch.Tensor.float = torch.Tensor.double
            self.ready = case.dtype
        warnings.filterwarnings("ignore")
        return torch

    def base(self, case: Case) -> Any:
        """A model whose one module is named `layer`, with the base's weights."""
        torch = self.torch(case)

        class One(torch.nn.Module):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                out, in_ = case.tensors["W"].shape
                table = case.place == "table"
                self.layer = torch.nn.Embedding(out, in_) if table else torch.nn.Linear(in_, out)

            def forward(self, x: Any, **more: Any) -> Any:
                return self.layer(x, **more)

        model = One()
        with torch.no_grad():
            model.layer.weight.copy_(torch.tensor(case.tensors["W"]))
            if "b" in case.tensors:
                model.layer.bias.copy_(torch.tensor(case.tensors["b"]))
        return model

    def spec(self, case: Case) -> Spec:
        """How PEFT writes the method. Raises `Unsupported` for what it cannot put on one layer."""
        if case.place not in ("linear", "tasks", "table", "read"):
            raise Unsupported("not one layer")
        spec, method = spec_of(method_of(case)), method_of(case)
        return spec.of(config_of(spec, method), ARCH)

    def config(self, case: Case) -> Any:
        """PEFT's configuration."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        spec, method = self.spec(case), method_of(case)
        if why := spec.unasked(method):
            raise Unsupported(why)
        cls = PEFT_TYPE_TO_CONFIG_MAPPING[spec.peft_type]
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in config_of(spec, method).items() if k in known and k != "peft_type"})

    def adapted(self, case: Case, arrays: bool = True, seed: int = 0) -> Any:
        """The model with the adapter, its arrays set to those of the case."""
        import peft

        torch = self.torch(case)
        torch.manual_seed(seed)
        model = peft.get_peft_model(self.base(case), self.config(case), autocast_adapter_dtype=False)
        model = model.to(torch.float64 if case.dtype == np.float64 else torch.float32).eval()
        if arrays:
            given = self.theirs(case)
            found = peft.set_peft_model_state_dict(model, given)
            state = peft.get_peft_model_state_dict(model)
            for key, a in given.items():
                if key in state and state[key].shape != a.shape:
                    raise Unsupported(f"{key}: PEFT has shape {tuple(state[key].shape)}, not {tuple(a.shape)}")
            for name, held in self.spec(case).unsaved.items():
                getattr(model.base_model.model.layer, held)["default"] = torch.tensor(case.tensors[name])
            if found.unexpected_keys:
                raise Unsupported(f"PEFT does not know {found.unexpected_keys[0]}")
            for name, buffer in self.spec(case).buffers.items():
                getattr(model.base_model.model.layer, buffer)["default"] = torch.tensor(case.tensors[name])
        if "keep" in case.tensors:
            self.masked(case, model)
        return model

    def masked(self, case: Case, model: Any) -> None:
        """Every dropout of the adapter multiplies by the given mask."""
        torch = self.torch(case)
        found = False
        for module in model.modules():
            for name, drops in module.named_children():
                if name.endswith("_dropout") and isinstance(drops, torch.nn.ModuleDict):
                    drops["default"] = mask(case)
                    found = True
        if not found:
            raise Unsupported("PEFT has no dropout there")
        model.train()

    def theirs(self, case: Case) -> Arrays:
        """The arrays of a case under PEFT's keys, as torch tensors."""
        torch, given = self.torch(case), case.named("array", "stored")
        found = tensors_of(self.spec(case), given, self.site(case))
        return {key: torch.tensor(a) for key, a in found.items()}

    def site(self, case: Case) -> Site:
        """What the layer is to us."""
        return PLACES[case.place].sites[0]

    def ours(self, case: Case, found: Mapping[str, Any]) -> Arrays:
        """Tensors under PEFT's keys as arrays under our names."""
        tensors = {key: a.detach().numpy() for key, a in found.items()}
        spec, beside = self.spec(case), case.named("array", "stored")
        if spec.packing is not None and not beside:  # as training starts
            place = place_at(case.place, case.inputs)
            beside, _ = arrays_at(place, method_of(case), np.random.default_rng(0), case.tensors)
        arrays = arrays_of(spec, tensors, self.site(case), beside)
        return {name: np.ascontiguousarray(a) for name, a in arrays.items() if not case.trained or name in case.trained}

    def call(self, case: Case, model: Any, x: Any) -> Any:
        more = {"task_ids": self.torch(case).tensor(case.tensors["task_ids"])} if case.place == "tasks" else {}
        return model(x, **more, **self.spec(case).called(model, case.tensors))

    def input(self, case: Case) -> Any:
        return self.torch(case).tensor(case.tensors["ids" if case.place == "table" else "x"])

    # --- what is asked

    def forward(self, case: Case) -> Arrays:
        model = self.adapted(case)
        with self.torch(case).no_grad():
            return dict(y=self.call(case, model, self.input(case)).numpy())

    def vjp(self, case: Case) -> Arrays:
        import peft

        torch, model, x = self.torch(case), self.adapted(case), self.input(case)
        if x.dtype.is_floating_point:
            x.requires_grad_()
        for p in model.parameters():
            p.grad = None
        (self.call(case, model, x) * torch.tensor(case.tensors["g.y"])).sum().backward()
        grads = {
            k: torch.zeros_like(v) if getattr(v, "grad", None) is None else v.grad
            for k, v in model.state_dict(keep_vars=True).items()
        }
        named = self.ours(case, peft.get_peft_model_state_dict(model, grads))
        return named | (dict(x=x.grad.numpy()) if x.grad is not None else {})

    def trace(self, case: Case) -> Arrays:
        """What the base, A and B give, as their modules give it; the merged weight; the output."""
        traced = self.spec(case).traced if case.place == "linear" else {}
        if not traced:
            return {}
        model = self.adapted(case)
        found: Arrays = {}

        def keep(name: str) -> Any:
            return lambda module, given, out: found.__setitem__(name, out.detach().numpy())

        for name, module in traced.items():
            model.base_model.model.layer.get_submodule(module).register_forward_hook(keep(name))
        y = self.call(case, model, self.input(case)).detach().numpy()
        steps = found | dict(merged=self.merge(case)["W"], y=y)
        return {f"{STEPS.index(name)}.{name}": a for name, a in steps.items()}

    def merged(self, case: Case) -> Any:
        return self.adapted(case).merge_and_unload().layer

    def merge(self, case: Case) -> Arrays:
        layer = self.merged(case)
        return {"W": layer.weight.detach().numpy()} | (
            {"b": layer.bias.detach().numpy()} if "b" in case.tensors else {}
        )

    def half(self, case: Case) -> Any:
        """The model with its base in bfloat16, and the adapter in the dtype that the case says."""
        torch, model = self.torch(case), self.adapted(case)
        kept = {k: p.detach().clone() for k, p in model.named_parameters()}
        model.to(torch.bfloat16)
        for k, p in model.named_parameters() if case.options["adapter"] == "float32" else ():
            if "base_layer" not in k:
                p.data = torch.tensor(kept[k].numpy().astype(np.float32))
        return model

    def merge_bfloat16(self, case: Case) -> Arrays:
        return self.wide(case, self.half(case).merge_and_unload().layer)

    def unmerge_bfloat16(self, case: Case) -> Arrays:
        model = self.half(case)
        model.merge_adapter()
        model.unmerge_adapter()
        return self.wide(case, model.base_model.model.layer.get_base_layer())

    def wide(self, case: Case, layer: Any) -> Arrays:
        """A linear's weight and bias in the dtype of the case."""
        return {
            k: v.detach().double().numpy().astype(case.dtype) for k, v in dict(W=layer.weight, b=layer.bias).items()
        }

    def combine(self, case: Case) -> Arrays:
        """`add_weighted_adapter`, with two of different rank by concatenation."""
        import peft

        torch, model = self.torch(case), None
        count = len(case.options["weights"])
        for i, config in enumerate(case.options["adapters"]):
            own = {k[: -len(f".{i}")]: v for k, v in case.named("array").items() if k.endswith(f".{i}")}
            rest = {k: v for k, v in case.inputs.items() if case.roles[k] != "array"}
            roles = {k: r for k, r in case.roles.items() if r != "array"} | dict.fromkeys(own, "array")
            member = dataclasses.replace(case, config=config, inputs={**rest, **own}, roles=roles)
            if model is None:
                model = peft.get_peft_model(self.base(member), self.config(member), "0", autocast_adapter_dtype=False)
            else:
                model.add_adapter(str(i), self.config(member))
            peft.set_peft_model_state_dict(model, self.theirs(member), adapter_name=str(i))
        assert model is not None
        names = [str(i) for i in range(count)]
        options = {} if count == 1 else dict(combination_type="cat")
        try:
            model.add_weighted_adapter(names, case.options["weights"], "sum", **options)
        except ValueError as why:
            raise Unsupported(str(why)) from None
        model.set_adapter("sum")
        with torch.no_grad():
            return dict(y=self.call(case, model.to(torch.get_default_dtype()).eval(), self.input(case)).numpy())

    def delta(self, case: Case) -> Arrays:
        return dict(delta=self.merge(case)["W"] - case.tensors["W"])

    def unmerge(self, case: Case) -> Arrays:
        model = self.adapted(case)
        model.merge_adapter()
        try:
            model.unmerge_adapter()
        except NotImplementedError as why:
            raise Unsupported(str(why)) from None
        layer = model.base_model.model.layer.get_base_layer()
        return dict(W=layer.weight.detach().numpy(), b=layer.bias.detach().numpy())

    def init(self, case: Case, seed: int = 0) -> Arrays:
        import peft

        if needs(method_of(case)):
            raise Unsupported("PEFT measures on a whole model")
        model = self.adapted(case, arrays=False, seed=seed)
        return self.ours(case, peft.get_peft_model_state_dict(model))

    def draw(self, case: Case) -> Arrays:
        each = [self.init(case, seed) for seed in range(case.options["times"])]
        return {k: np.stack([a[k] for a in each]) for k in case.options["shapes"]}

    def save(self, case: Case) -> Arrays:
        """What `save_pretrained` writes."""
        import peft

        state = peft.get_peft_model_state_dict(self.adapted(case))
        return {key: np.ascontiguousarray(a.detach().numpy()) for key, a in state.items()}

    def train(self, case: Case) -> Arrays:
        """The optimiser's equations with torch's gradients: what is judged is the layer, and that its base stays."""
        import peft

        torch, model, x = self.torch(case), self.adapted(case), self.input(case)
        target, o = torch.tensor(case.tensors["target.y"]), case.options["optimiser"]
        settings = dict(lr=o["lr"], weight_decay=o["weight_decay"])
        trained = [p for p in model.parameters() if p.requires_grad]
        if o["kind"] == "adamw":
            optimiser = torch.optim.AdamW(trained, betas=(o["beta1"], o["beta2"]), eps=o["eps"], **settings)
        else:
            optimiser = torch.optim.SGD(trained, lr=o["lr"], momentum=o["momentum"])
        for _ in range(o["steps"]):
            optimiser.zero_grad()
            (0.5 * (self.call(case, model, x) - target) ** 2).sum().backward()
            if "clip" in o:  # torch's own adds 1e-6 to the norm
                norm = sum((p.grad**2).sum() for p in trained if p.grad is not None) ** 0.5
                for p in (p for p in trained if p.grad is not None):
                    p.grad *= torch.clamp(o["clip"] / norm, max=1)
            if o["kind"] == "sgd":  # torch couples its decay to the gradient; here it is apart
                before = [p.detach().clone() for p in trained]
            optimiser.step()
            if o["kind"] == "sgd":
                with torch.no_grad():
                    for p, was in zip(trained, before, strict=True):
                        p -= o["lr"] * o["weight_decay"] * was
        named = self.ours(case, peft.get_peft_model_state_dict(model))
        layer = model.base_model.model.layer.get_base_layer()
        return named | dict(W=layer.weight.detach().numpy())

    def fit(self, case: Case) -> Arrays:
        """As `train`, for methods whose training is that of their outputs alone."""
        method = method_of(case)
        beside = ("penalty", "after_backward", "after_step")
        if any(getattr(type(method), f) is not getattr(Method, f) for f in beside) or any(
            rate(method, k) != 1 for k in case.trained
        ):
            raise Unsupported("PEFT leaves to a training loop what this method does in training")
        return self.train(case)

    def load(self, case: Case) -> Arrays:
        import peft

        torch = self.torch(case)
        if case.folder is None:
            raise Unsupported("there are no files")
        try:
            model = peft.PeftModel.from_pretrained(
                self.base(case), case.folder / "adapter", autocast_adapter_dtype=False
            )
            model = model.to(torch.float64 if case.dtype == np.float64 else torch.float32).eval()
            with torch.no_grad():
                return dict(y=self.call(case, model, self.input(case)).numpy())
        except (ValueError, RuntimeError, KeyError) as why:  # some shapes show in the first pass only
            raise Rejected(str(why)[:300]) from None


implementation = Peft()
