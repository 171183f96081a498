"""loralib, the authors' own LoRA: `Linear` and `Embedding`, which merge when they are set to evaluate."""

from __future__ import annotations

from typing import Any

from minipeft.conformance.cases import Case, Unsupported
from minipeft.interop.harness_torch import Arrays, Layer, TorchLibrary, mask, torch_of


class Loralib(TorchLibrary):
    """LoRA by its authors."""

    def info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return dict(
            name="loralib",
            version=version("loralib"),
            language="Python",
            dtypes=["float64", "float32"],
            methods=["lora"],
        )

    def fresh(self, case: Case) -> Any:
        """The library's layer with the base's weights, in training mode: not merged."""
        torch = torch_of(case)
        import loralib

        c = case.config
        if c["rslora"] or c["lora_bias"]:
            raise Unsupported("loralib has neither rank-stabilised scaling nor a trained bias")
        out, in_ = case.tensors["W"].shape
        if case.place == "table":
            layer = loralib.Embedding(out, in_, r=c["r"], lora_alpha=c["alpha"])
        elif case.place == "linear":
            layer = loralib.Linear(in_, out, r=c["r"], lora_alpha=c["alpha"])
        else:
            raise Unsupported("loralib has linears and embeddings")
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(case.tensors["W"]))
            if "b" in case.tensors:
                layer.bias.copy_(torch.tensor(case.tensors["b"]))
        return layer

    def layer(self, case: Case) -> Layer:
        module = self.fresh(case)
        if "keep" in case.tensors:
            module.lora_dropout = mask(case)
        if case.place == "table":  # its A (r, V) and B (d, r) are our B and A, transposed
            found = dict(A=self.put(case, module.lora_B, "A", True), B=self.put(case, module.lora_A, "B", True))
            return Layer(module, found, turned=("A", "B"))
        return Layer(module, dict(A=self.put(case, module.lora_A, "A"), B=self.put(case, module.lora_B, "B")))

    def merged(self, layer: Layer) -> Arrays:
        layer.module.eval()
        return dict(W=layer.module.weight, b=layer.module.bias)

    def unmerged(self, layer: Layer) -> Arrays:
        layer.module.eval()
        layer.module.train()
        return dict(W=layer.module.weight, b=layer.module.bias)

    def init(self, case: Case) -> Arrays:
        module = self.fresh(case)
        return dict(A=module.lora_A.detach().numpy(), B=module.lora_B.detach().numpy())


implementation = Loralib()
