"""LyCORIS: LoCon (LoRA, and DoRA as its weight decomposition), LoHa, LoKr and (IA)³ on one torch linear."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.cases import Case, Unsupported
from minipeft.interop.harness_torch import Arrays, Layer, TorchLibrary, torch_of

NAMES = {  # its parameters, by our arrays
    "lora": dict(A="lora_down.weight", B="lora_up.weight"),
    "dora": dict(A="lora_down.weight", B="lora_up.weight", m="dora_scale"),
    "loha": dict(X1="hada_w1_a", Y1="hada_w1_b", X2="hada_w2_a", Y2="hada_w2_b"),
    "lokr": dict(C="lokr_w1", P="lokr_w1_a", Q="lokr_w1_b", D="lokr_w2", B="lokr_w2_a", A="lokr_w2_b"),
    "ia3": dict(l="weight"),
}  # fmt: skip


class Lycoris(TorchLibrary):
    """LyCORIS as an implementation. Its DoRA differentiates the norm."""

    def info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return dict(
            name="lycoris", version=version("lycoris-lora"), language="Python", dtypes=["float64", "float32"],
            methods=[*NAMES], readings={"dora": {"grad": "full"}},
        )  # fmt: skip

    def fresh(self, case: Case) -> Any:
        """The library's module, put on the base's linear."""
        torch = torch_of(case)
        from lycoris.modules.ia3 import IA3Module
        from lycoris.modules.locon import LoConModule
        from lycoris.modules.loha import LohaModule
        from lycoris.modules.lokr import LokrModule

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
        options = dict(lora_dim=c.get("r"), alpha=c.get("alpha"), rs_lora=c.get("rslora", False))
        if case.method == "loha":
            module = LohaModule("layer", linear, 1.0, **options)
        elif case.method == "lokr":
            module = LokrModule("layer", linear, 1.0, **options, factor=c["factor"], decompose_both=c["decompose_both"])
        elif case.method == "ia3":
            module = IA3Module("layer", linear, 1.0)
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
        own = parameters(case, module)
        if any(k not in case.tensors or tuple(p.shape) != case.tensors[k].shape for k, p in own.items() if k != "m"):
            raise Unsupported("with this factor it takes the smaller part of a width first")
        found = {ours: self.put(case, p, ours) for ours, p in own.items()}
        if case.method == "ia3":  # what 1 is added to
            found["l"].data -= 1
        return Flat(module, found, call=linear)

    def train(self, case: Case) -> Arrays:
        if case.method == "ia3":
            raise Unsupported("its parameter is l - 1, which weight decay draws to another place")
        return super().train(case)

    def base_weight(self, layer: Layer) -> Any:
        return layer.module.org_module[0].weight

    def modules(self, layer: Layer) -> tuple[Any, ...]:
        return layer.module, layer.module.org_module[0]

    def merged(self, layer: Layer) -> Arrays:
        layer.module.merge_to(1.0)
        return dict(W=layer.module.org_module[0].weight, b=layer.module.org_module[0].bias)

    def init(self, case: Case) -> Arrays:
        if case.config.get("start") == "peft":
            raise Unsupported("it starts as start='lycoris'")
        found = {k: p.detach().numpy() for k, p in parameters(case, self.fresh(case)[0]).items()}
        found |= {"m": found["m"].reshape(-1)} if "m" in found else {}
        return {k: a + 1 for k, a in found.items()} if case.method == "ia3" else found


def parameters(case: Case, module: Any) -> Arrays:
    """Those that a module has, by our names."""
    own = dict(module.named_parameters())
    return {ours: own[theirs] for ours, theirs in NAMES[case.method].items() if theirs in own}


class Flat(Layer):
    """A layer whose magnitude is a column."""

    def ours(self, name: str, a: Any) -> Any:
        found = super().ours(name, a)
        return found.reshape(-1) if name == "m" else found


implementation = Lycoris()
