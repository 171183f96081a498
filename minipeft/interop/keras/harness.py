"""Keras 3 on torch: `Dense` and `Embedding` with lora_rank and lora_alpha, the way its own documentation shows."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case, Unsupported
from minipeft.interop.harness_torch import Arrays, Layer, TorchLibrary, torch_of


class Keras(TorchLibrary):
    """Keras as an implementation: it keeps W (in, out), A (in, r) and B (r, out)."""

    def info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return dict(name="keras", version=version("keras"), language="Python", dtypes=["float32"], methods=["lora"])

    def fresh(self, case: Case) -> Any:
        """The library's layer with the base's weights."""
        torch_of(case)
        os.environ["KERAS_BACKEND"] = "torch"
        import keras

        c = case.config
        if case.place not in ("linear", "table") or c["rslora"] or c["lora_bias"] or "keep" in case.tensors:
            raise Unsupported("Keras has no rank-stabilised scaling, trained bias or dropout in LoRA")
        out, in_ = case.tensors["W"].shape
        options = dict(lora_rank=c["r"], lora_alpha=c["alpha"], dtype=np.dtype(case.dtype).name)
        if case.place == "table":
            layer = keras.layers.Embedding(out, in_, **options)
            layer.build((None,))
            layer._embeddings.assign(case.tensors["W"])
            return layer
        layer = keras.layers.Dense(out, **options)
        layer.build((None, in_))
        layer._kernel.assign(case.tensors["W"].T)
        layer.bias.assign(case.tensors["b"])
        return layer

    def layer(self, case: Case) -> Layer:
        layer = self.fresh(case)
        if case.place == "table":
            layer.lora_embeddings_a.assign(case.tensors["B"])
            layer.lora_embeddings_b.assign(case.tensors["A"])
            return Layer(layer, dict(A=layer.lora_embeddings_b.value, B=layer.lora_embeddings_a.value))
        layer.lora_kernel_a.assign(case.tensors["A"].T)
        layer.lora_kernel_b.assign(case.tensors["B"].T)
        found = dict(A=layer.lora_kernel_a.value, B=layer.lora_kernel_b.value)
        return Layer(layer, found, turned=("A", "B"))

    def base_weight(self, layer: Layer) -> Any:
        return layer.module._kernel.value.T

    def merged(self, layer: Layer) -> Arrays:
        return dict(W=layer.module.kernel.T, b=layer.module.bias.value)

    def modules(self, layer: Layer) -> tuple[Any, ...]:
        raise Unsupported("only float32 is tried")

    def init(self, case: Case) -> Arrays:
        layer = self.fresh(case)
        return dict(A=layer.lora_kernel_a.numpy().T, B=layer.lora_kernel_b.numpy().T)


implementation = Keras()
