"""LyCORIS: LoCon (LoRA, and DoRA as its weight decomposition), LoHa, (IA)³ and full differences on one torch linear."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.cases import Case, Unsupported
from minipeft.interop.harness_torch import Arrays, Layer, TorchLibrary, torch_of


class Lycoris(TorchLibrary):
    """LyCORIS as an implementation. Its DoRA differentiates the norm."""

    def info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return dict(
            name="lycoris", version=version("lycoris-lora"), language="Python", dtypes=["float64", "float32"],
            methods=["dora", "loha", "lora"], readings={"dora": {"grad": "full"}},
        )  # fmt: skip

    def fresh(self, case: Case) -> Any:
        """The library's module, put on the base's linear."""
        torch = torch_of(case)
        from lycoris.modules.locon import LoConModule
        from lycoris.modules.loha import LohaModule

        if case.place != "linear":
            raise Unsupported("only linears are tried")
        c = case.config
        if c.get("lora_bias"):
            raise Unsupported("LyCORIS has no trained bias of B")
        out, in_ = case.tensors["W"].shape
        linear = torch.nn.Linear(in_, out)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(case.tensors["W"]))
            linear.bias.copy_(torch.tensor(case.tensors["b"]))
        options = dict(lora_dim=c["r"], alpha=c["alpha"], rs_lora=c.get("rslora", False))
        if case.method == "loha":
            module = LohaModule("layer", linear, 1.0, **options)
        else:
            module = LoConModule(
                "layer", linear, 1.0, weight_decompose=case.method == "dora", wd_on_out=True, **options
            )
        module.apply_to()
        return module.to(linear.weight.dtype), linear

    def layer(self, case: Case) -> Layer:
        if "keep" in case.tensors:
            raise Unsupported("its dropout acts on the weight's rows, or after A")
        module, linear = self.fresh(case)
        if case.method == "loha":
            names = dict(X1="hada_w1_a", Y1="hada_w1_b", X2="hada_w2_a", Y2="hada_w2_b")
            found = {ours: self.put(case, getattr(module, theirs), ours) for ours, theirs in names.items()}
        else:
            found = dict(A=self.put(case, module.lora_down.weight, "A"), B=self.put(case, module.lora_up.weight, "B"))
            if case.method == "dora":
                found["m"] = self.put(case, module.dora_scale, "m")
        return Flat(module, found, call=linear)

    def base_weight(self, layer: Layer) -> Any:
        return layer.module.org_module[0].weight

    def modules(self, layer: Layer) -> tuple[Any, ...]:
        return layer.module, layer.module.org_module[0]

    def merged(self, layer: Layer) -> Arrays:
        layer.module.merge_to(1.0)
        return dict(W=layer.module.org_module[0].weight, b=layer.module.org_module[0].bias)

    def init(self, case: Case) -> Arrays:
        module, _ = self.fresh(case)
        if case.method == "loha":
            names = dict(X1="hada_w1_a", Y1="hada_w1_b", X2="hada_w2_a", Y2="hada_w2_b")
            return {ours: getattr(module, theirs).detach().numpy() for ours, theirs in names.items()}
        found = dict(A=module.lora_down.weight.detach().numpy(), B=module.lora_up.weight.detach().numpy())
        return found | (dict(m=module.dora_scale.detach().numpy().reshape(-1)) if case.method == "dora" else {})


class Flat(Layer):
    """A layer whose magnitude is a column."""

    def ours(self, name: str, a: Any) -> Any:
        found = super().ours(name, a)
        return found.reshape(-1) if name == "m" else found


implementation = Lycoris()
