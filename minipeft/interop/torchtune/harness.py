"""torchtune: `LoRALinear` and `DoRALinear`, with a bias."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.cases import Case, Unsupported
from minipeft.interop.harness_torch import Arrays, Layer, TorchLibrary, mask, torch_of


class Torchtune(TorchLibrary):
    """torchtune as an implementation. It merges checkpoints, not layers."""

    def info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return dict(
            name="torchtune", version=version("torchtune"), language="Python", dtypes=["float64", "float32"],
            methods=["dora", "lora"], readings={"dora": {"grad": "detached"}},
        )  # fmt: skip

    def fresh(self, case: Case) -> Any:
        """The library's layer with the base's weights."""
        torch = torch_of(case)
        from torchtune.modules.peft import DoRALinear, LoRALinear

        c = case.config
        if case.place != "linear" or c["rslora"] or c["lora_bias"]:
            raise Unsupported("torchtune has linears, without rank-stabilised scaling or a trained bias of B")
        out, in_ = case.tensors["W"].shape
        cls = DoRALinear if case.method == "dora" else LoRALinear
        layer = cls(in_, out, rank=c["r"], alpha=c["alpha"], use_bias=True)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(case.tensors["W"]))
            layer.bias.copy_(torch.tensor(case.tensors["b"]))
        if case.method == "dora":
            layer.initialize_dora_magnitude()
        return layer

    def layer(self, case: Case) -> Layer:
        module = self.fresh(case)
        if "keep" in case.tensors:
            module.dropout = mask(case)
        found = dict(A=self.put(case, module.lora_a.weight, "A"), B=self.put(case, module.lora_b.weight, "B"))
        if case.method == "dora":
            found["m"] = self.put(case, module.magnitude, "m")
        return Layer(module, found)

    def init(self, case: Case) -> Arrays:
        module = self.fresh(case)
        found = dict(A=module.lora_a.weight.detach().numpy(), B=module.lora_b.weight.detach().numpy())
        return found | (dict(m=module.magnitude.detach().numpy()) if case.method == "dora" else {})


implementation = Torchtune()
