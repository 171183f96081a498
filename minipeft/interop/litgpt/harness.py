"""litgpt: `LoRALinear` and its merge."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.cases import Case, Unsupported
from minipeft.interop.harness_torch import Arrays, Layer, TorchLibrary, mask, torch_of


class Litgpt(TorchLibrary):
    """litgpt as an implementation. It unmerges nothing."""

    def info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return dict(
            name="litgpt", version=version("litgpt"), language="Python", dtypes=["float64", "float32"], methods=["lora"]
        )

    def fresh(self, case: Case) -> Any:
        """The library's layer with the base's weights."""
        torch = torch_of(case)
        from litgpt.lora import LoRALinear

        c = case.config
        if case.place != "linear" or c["rslora"] or c["lora_bias"]:
            raise Unsupported("litgpt has linears, without rank-stabilised scaling or a trained bias of B")
        out, in_ = case.tensors["W"].shape
        layer = LoRALinear(in_, out, r=c["r"], lora_alpha=c["alpha"], bias=True)
        with torch.no_grad():
            layer.linear.weight.copy_(torch.tensor(case.tensors["W"]))
            layer.linear.bias.copy_(torch.tensor(case.tensors["b"]))
        return layer

    def layer(self, case: Case) -> Layer:
        module = self.fresh(case)
        if "keep" in case.tensors:
            module.lora_dropout = mask(case)
        return Layer(module, dict(A=self.put(case, module.lora_A, "A"), B=self.put(case, module.lora_B, "B")))

    def base_weight(self, layer: Layer) -> Any:
        return layer.module.linear.weight

    def merged(self, layer: Layer) -> Arrays:
        layer.module.merge()
        return dict(W=layer.module.linear.weight, b=layer.module.linear.bias)

    def init(self, case: Case) -> Arrays:
        module = self.fresh(case)
        return dict(A=module.lora_A.detach().numpy(), B=module.lora_B.detach().numpy())


implementation = Litgpt()
