"""mlx-lm: `LoRALinear`, `DoRALinear` and their embeddings, on MLX for the CPU, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.cases import Case, Unsupported

Arrays = dict[str, Any]


class MlxLm:
    """mlx-lm as an implementation: it keeps A (in, r) and B (r, out), and a scale in place of α."""

    def info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return dict(
            name="mlx-lm", version=version("mlx-lm"), language="Python", dtypes=["float32"], methods=["dora", "lora"],
            readings={"dora": {"grad": "detached"}},
        )  # fmt: skip

    def layer(self, case: Case, arrays: bool = True) -> Any:
        """The library's layer, from a linear or an embedding of MLX."""
        import mlx.core as mx
        import mlx.nn as nn
        from mlx_lm.tuner.dora import DoRALinear
        from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

        mx.set_default_device(mx.cpu)
        c = case.config
        if c.get("lora_bias"):
            raise Unsupported("mlx-lm has no trained bias of B")
        if "keep" in case.tensors:
            raise Unsupported("its mask cannot be given")
        scale = c["alpha"] / (np.sqrt(c["r"]) if c["rslora"] else c["r"])
        out, in_ = case.tensors["W"].shape
        if case.place == "table":
            if case.method == "dora":
                raise Unsupported("its magnitude of a table belongs to a word, not to a dimension")
            table = nn.Embedding(out, in_)
            table.weight = mx.array(case.tensors["W"])
            layer = LoRAEmbedding.from_base(table, r=c["r"], scale=float(scale))
            layer.lora_a, layer.lora_b = mx.array(case.tensors["B"]), mx.array(case.tensors["A"])
            return layer
        linear = nn.Linear(in_, out)
        linear.weight, linear.bias = mx.array(case.tensors["W"]), mx.array(case.tensors["b"])
        cls = DoRALinear if case.method == "dora" else LoRALinear
        layer = cls.from_base(linear, r=c["r"], scale=float(scale))
        if arrays:
            layer.lora_a, layer.lora_b = mx.array(case.tensors["A"].T), mx.array(case.tensors["B"].T)
            if case.method == "dora":
                layer.m = mx.array(case.tensors["m"])
        return layer

    def forward(self, case: Case) -> Arrays:
        import mlx.core as mx

        return dict(y=np.array(self.layer(case)(mx.array(case.tensors["ids" if case.place == "table" else "x"]))))

    def vjp(self, case: Case) -> Arrays:
        import mlx.core as mx

        layer, g = self.layer(case), mx.array(case.tensors["g.y"])
        if case.place == "table":
            ids = mx.array(case.tensors["ids"])

            def over(values: list[Any]) -> Any:
                layer.lora_a, layer.lora_b = values
                return (layer(ids) * g).sum()

            grads = mx.grad(over)([layer.lora_a, layer.lora_b])
            return dict(A=np.array(grads[1]), B=np.array(grads[0]))
        names = dict(A="lora_a", B="lora_b") | (dict(m="m") if case.method == "dora" else {})

        def f(values: list[Any]) -> Any:
            for theirs, v in zip(names.values(), values[1:], strict=True):
                setattr(layer, theirs, v)
            return (layer(values[0]) * g).sum()

        values = [mx.array(case.tensors["x"]), *(getattr(layer, theirs) for theirs in names.values())]
        grads = mx.grad(f)(values)
        found = dict(zip(("x", *names), (np.array(v) for v in grads), strict=True))
        return {k: np.ascontiguousarray(v.T) if k in "AB" else v for k, v in found.items()}

    def merge(self, case: Case) -> Arrays:
        fused = self.layer(case).fuse()
        return dict(W=np.array(fused.weight), b=np.array(fused.bias))

    def merge_bfloat16(self, case: Case) -> Arrays:
        import mlx.core as mx

        layer = self.layer(case)
        layer.linear.set_dtype(mx.bfloat16)
        if case.options["adapter"] == "bfloat16":
            layer.set_dtype(mx.bfloat16)
        fused = layer.fuse()
        return {k: np.array(v.astype(mx.float32)) for k, v in dict(W=fused.weight, b=fused.bias).items()}

    def delta(self, case: Case) -> Arrays:
        return dict(delta=self.merge(case)["W"] - case.tensors["W"])

    def init(self, case: Case) -> Arrays:
        layer = self.layer(case, arrays=False)
        found = dict(A=np.array(layer.lora_a).T, B=np.array(layer.lora_b).T)
        return found | (dict(m=np.array(layer.m)) if case.method == "dora" else {})


implementation = MlxLm()
