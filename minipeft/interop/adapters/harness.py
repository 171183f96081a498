"""adapters (AdapterHub): its own layers, each with one adapter that its configuration describes, called as its models call them.

Bottlenecks and fusion are in the layer that AdapterHub hooks into models of any kind: it gives y, and the model adds x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minipeft.conformance.cases import Case, Unsupported
from minipeft.conformance.places import place_at
from minipeft.interop.harness_torch import Arrays, Layer, TorchLibrary, mask, torch_of
from minipeft.model.arch import Arch

ENDS = {  # of a place: what goes in and what comes out
    "linear": (("x",), ("y",)),
    "output": (("a", "u", "x"), ("y",)),
    "layer": (("h",), ("y",)),
    "keys": (("k", "v"), ("k", "v")),
    "embedded": (("h",), ("y",)),
    "ends": (("h", "u"), ("y", "z")),
}
ACTIVATIONS = dict(gelu="gelu", gelu_tanh="gelu_pytorch_tanh", relu="relu", silu="swish", tanh="tanh")
PARTS = dict(Wd="adapter_down.0.weight", bd="adapter_down.0.bias", Wu="adapter_up.weight", bu="adapter_up.bias")
UNIT = dict(W=("learned_source", "weight"), b=("learned_source", "bias"), R=("projection", "weight"))
THEIRS: dict[str, Mapping[str, str]] = {  # our arrays by the names of their modules, but for fusion and LoReFT
    "lora": dict(A="lora_A", B="lora_B"),
    "dora": dict(A="lora_A", B="lora_B", m="m.weight"),
    "ia3": dict(l="lora_B"),
    "houlsby": PARTS,
    "pfeiffer": PARTS,
    "parallel_adapter": PARTS,
    "invertible": dict(
        F1="F.0.weight", c1="F.0.bias", F2="F.2.weight", c2="F.2.bias",
        G1="G.0.weight", k1="G.0.bias", G2="G.2.weight", k2="G.2.bias",
    ),
    "prefix_tuning": dict(E="control_trans"),
    "prompt_tuning": dict(P="prompt_embedding.weight"),
}  # fmt: skip
FUSION = dict(Q="query.weight", q="query.bias", Kz="key.weight", kz="key.bias", Vf="value.weight")


def packed(case: Case) -> Case:
    """The case with all inputs as one array x, and so the cotangents and the targets as g.y and target.y."""
    if case.place not in ENDS:
        raise Unsupported("adapters has LoRA and its kin on linears alone")
    inputs, outputs = ENDS[case.place]
    names = {"x": inputs, "g.y": [f"g.{n}" for n in outputs], "target.y": [f"target.{n}" for n in outputs]}
    stacked = {k: np.stack([case.inputs[n] for n in of]) for k, of in names.items() if of[0] in case.inputs}
    return dataclasses.replace(case, inputs={**case.inputs, **stacked})


def arch_of(case: Case) -> Arch:
    """The sizes of the model that the case is a part of, packed or not."""
    shapes = {k: v for k, v in case.inputs.items() if k != "x"}
    beside = next((shapes[n] for n in ENDS[case.place][0] if n in shapes), case.inputs.get("x"))  # x is as wide
    return place_at(case.place, {**shapes, "x": beside}).sites[0].arch


@dataclass
class Shaped(Layer):
    """A layer that holds some arrays in another shape than we, and others, `stored`, that are not trained."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stored: Mapping[str, Any] = field(default_factory=dict)

    def ours(self, name: str, a: Any) -> np.ndarray:
        found = super().ours(name, a)
        return found.reshape(self.shapes.get(name, found.shape))


class Adapters(TorchLibrary):
    """adapters as an implementation. LoReFT on given arrays is its NoReFT, the same but that R may be any matrix.

    Where text starts beside a prefix (at 0: positions="zero") shows in a decoder alone, which is not there, so it is not declared.
    """

    def info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return dict(
            name="adapters", version=version("adapters"), language="Python", dtypes=["float64", "float32"],
            methods=sorted([*THEIRS, "adapter_fusion", "loreft"]),
            readings={"dora": {"grad": "full"}, "parallel_adapter": {"reads": "residual"}, "prefix_tuning": {"layout": "ordered"}},
        )  # fmt: skip

    # --- a layer of the library

    def config(self, case: Case) -> Any:
        """The library's configuration of the adapter."""
        import adapters

        c = case.config
        if case.method in ("lora", "dora"):
            if c["rslora"] or c["lora_bias"]:
                raise Unsupported("adapters has neither rank-stabilised scaling nor a trained bias")
            cls = adapters.DoRAConfig if case.method == "dora" else adapters.LoRAConfig
            return cls(r=c["r"], alpha=c["alpha"], dropout=c["dropout"])
        if case.method == "ia3":
            return adapters.IA3Config(attn_matrices=["q"])
        if case.method == "loreft":
            ends = dict(prefix_positions=c["n_pre"], suffix_positions=c["n_suf"])
            given = case.ask != "init"  # an R of a case is not orthonormal, and its parametrisation would take no such
            cls = adapters.NoReftConfig if given else adapters.LoReftConfig
            return cls(r=c["r"], tied_weights=c["tied"], dropout=c["dropout"], **ends)
        if case.method == "prompt_tuning":
            if c["start"] != "normal":
                raise Unsupported("adapters starts prompts at random or from a text")
            return adapters.PromptTuningConfig(prompt_length=c["p"])
        if c["start"] != "normal":
            raise Unsupported("adapters has no such start")
        if case.method == "prefix_tuning":
            return adapters.PrefixTuningConfig(flat=not c["hidden"], prefix_length=c["p"], bottleneck_size=c["hidden"])
        options = dict(reduction_factor=c["reduction"], non_linearity=ACTIVATIONS[c["f"]])
        if case.method == "invertible":
            return adapters.SeqBnInvConfig(inv_adapter_reduction_factor=c["reduction"], **options)
        if case.method == "parallel_adapter":
            if c["learned_scale"] and c["s"] != 1:
                raise Unsupported("adapters has a constant scale or a trained one, not their product")
            return adapters.ParBnConfig(scaling="learned" if c["learned_scale"] else c["s"], **options)
        return (adapters.DoubleSeqBnConfig if case.method == "houlsby" else adapters.SeqBnConfig)(**options)

    def configured(self, case: Case, configs: Mapping[str, Any], active: Any) -> tuple[Any, Any]:
        """The configurations of a model as wide as the case that its layers ask for, with these adapters by name, some of them active."""
        from adapters import ModelAdaptersConfig
        from adapters.composition import parse_composition
        from transformers import LlamaConfig

        every = ModelAdaptersConfig()
        for name, config in configs.items():
            every.add(name, config)
        every.active_setup = parse_composition(active)
        arch = arch_of(case)
        return LlamaConfig(hidden_size=arch.d, num_attention_heads=arch.heads), every

    def linear(self, case: Case, configs: Mapping[str, Any], active: Any) -> Any:
        """The library's linear with the base's weights and fresh adapters."""
        torch = torch_of(case)
        from adapters.methods.lora import LoRALinear

        if case.place != "linear":
            raise Unsupported("adapters has LoRA and its kin on linears alone")
        out, in_ = case.tensors["W"].shape
        base = torch.nn.Linear(in_, out)
        with torch.no_grad():
            base.weight.copy_(torch.tensor(case.tensors["W"]))
            base.bias.copy_(torch.tensor(case.tensors["b"]))
        layer = LoRALinear.wrap(base, "selfattn", *self.configured(case, configs, active), attn_key="q")
        for name in configs:
            layer.add_adapter(name, 0)
        return layer

    def fresh(self, case: Case) -> Shaped:
        """The library's layer with a fresh adapter: it is called with all inputs as one tensor."""
        torch = torch_of(case)
        if case.method in ("lora", "dora", "ia3"):
            layer = self.linear(case, {"it": self.config(case)}, "it")
            return self.shaped(case, layer, layer.loras["it"], lambda x: layer(x[0])[None])
        if case.method == "adapter_fusion":
            return self.fusion(case)
        model, every = self.configured(case, {"it": self.config(case)}, "it")
        if case.method == "loreft":
            return self.reft(case, model, every)
        if case.method == "invertible":
            from adapters.methods.invertible import InvertibleAdapterLayer

            both = InvertibleAdapterLayer(model, every)
            both.add_adapter("it", 0)
            return self.shaped(case, both, both["it"], lambda x: torch.stack([both(x[0]), both(x[1], rev=True)]))
        if case.method == "prefix_tuning":
            return self.prefix(case, model, every)
        if case.method == "prompt_tuning":
            from adapters.methods.prompt_tuning import PromptTuningLayer

            prompt = PromptTuningLayer(model, every, torch.nn.Embedding(1, arch_of(case).d))
            prompt.add_adapter("it", 0)
            return self.shaped(case, prompt, prompt.prompt_tunings["it"], lambda h: prompt(h[0])[None])
        from adapters.methods.bottleneck import BottleneckLayer

        after = BottleneckLayer("output_adapter", is_layer_hooked=True)
        after.init_adapters(model, every)
        after.add_adapter("it", 0)
        return self.shaped(case, after, after.adapters["it"], lambda x: after(x[0], x[2], None)[None])

    def shaped(self, case: Case, layer: Any, holder: Any, call: Callable[[Any], Any]) -> Shaped:
        """A layer of the library, whose arrays are those of one of its modules."""
        names = dict(THEIRS[case.method])
        if case.method == "parallel_adapter" and case.config["learned_scale"]:
            names["g"] = "scaling"
        if case.method == "prefix_tuning" and case.config["hidden"]:
            names = dict(
                E="wte.weight", A1="control_trans.0.weight", c1="control_trans.0.bias", A2="control_trans.2.weight",
                c2="control_trans.2.bias",
            )  # fmt: skip
        known = dict(holder.named_parameters())
        shapes: dict[str, tuple[int, ...]] = dict(l=(-1,), m=(-1,))
        if case.method == "prefix_tuning":
            shapes["E"] = (case.config["p"], -1)
        return Shaped(layer.eval(), {n: known[k] for n, k in names.items()}, call=call, shapes=shapes)

    def fusion(self, case: Case) -> Shaped:
        """The library's fusion of bottlenecks."""
        from adapters import DynamicAdapterFusionConfig
        from adapters.composition import Fuse
        from adapters.methods.bottleneck import BottleneckLayer

        parts = [dataclasses.replace(case, method="pfeiffer", config=c) for c in case.config["adapters"]]
        configs = {str(i): self.config(part) for i, part in enumerate(parts)}
        fuse = Fuse(*configs)
        model, every = self.configured(case, configs, fuse)
        every.add_fusion(list(configs), DynamicAdapterFusionConfig(query_before_ln=case.config["query"] == "output"))
        after = BottleneckLayer("output_adapter", is_layer_hooked=True)
        after.init_adapters(model, every)
        for name in configs:
            after.add_adapter(name, 0)
        after.add_fusion_layer(list(configs))
        own = dict(after.adapter_fusion_layer[fuse.name].named_parameters())
        known = {i: dict(after.adapters[i].named_parameters()) for i in configs}
        stored = {f"{n}{i}": known[i][k] for i in configs for n, k in PARTS.items()}
        return Shaped(
            after.eval(), {n: own[k] for n, k in FUSION.items()}, stored=stored,
            call=lambda x: after(x[0], x[2], None)[None],
        )  # fmt: skip

    def reft(self, case: Case, model: Any, every: Any) -> Shaped:
        """The library's edit of a hidden state."""
        from adapters.context import ForwardContext
        from adapters.methods.reft import ReftLayer

        layer = ReftLayer("output", model, every)
        layer.add_adapter("it", 0)

        def call(h: Any) -> Any:
            with ForwardContext(None):
                return layer(h[0])[None]

        ends = ("", "_s") if case.config["n_suf"] and not case.config["tied"] else ("",)
        units = zip(ends, layer.refts["it"].units)
        found = {f"{n}{e}": getattr(getattr(u, k), p) for e, u in units for n, (k, p) in UNIT.items()}
        return Shaped(layer.eval(), found, call=call)

    def prefix(self, case: Case, model: Any, every: Any) -> Shaped:
        """The library's prefix of keys and values, in a model whose heads are those of the case."""
        torch = torch_of(case)
        from adapters.context import ForwardContext
        from adapters.methods.prefix_tuning import PrefixTuningLayer, PrefixTuningPool

        arch = arch_of(case)
        model.update(dict(hidden_size=arch.kv * arch.dh, num_attention_heads=arch.kv, num_key_value_heads=arch.kv))
        pool, layer = PrefixTuningPool(model, every), PrefixTuningLayer("self_prefix", model, every)
        layer.set_pool(pool)
        layer.add_adapter("it", 0)
        pool.confirm_prefix("it")

        def call(kv: Any) -> Any:
            with ForwardContext(None) as context:
                context.prefix_states = pool(kv[0])
                k, v, _ = layer(kv[0], kv[1], None)
            return torch.stack([k, v])

        return self.shaped(case, layer, pool.get_prefix("it")["self_prefix"], call)

    # --- what is asked

    def layer(self, case: Case) -> Shaped:
        found = self.fresh(case)
        for name, parameter in {**found.parameters, **found.stored}.items():
            self.put(case, parameter, name)
        if "keep" in case.tensors:
            found.module.loras["it"].lora_dropout = mask(case)
        return found

    def forward(self, case: Case) -> Arrays:
        found = super().forward(packed(case))
        return dict(zip(ENDS[case.place][1], found["y"]))

    def vjp(self, case: Case) -> Arrays:
        found = super().vjp(packed(case))
        inputs = found.pop("x")
        return found | dict(zip(ENDS[case.place][0], inputs))

    def train(self, case: Case) -> Arrays:
        if case.method == "loreft":
            raise Unsupported("adapters trains R through a parametrisation that keeps it orthonormal")
        return super().train(packed(case))

    def base_weight(self, layer: Layer) -> Any:
        """The frozen weight; where there is none, nothing."""
        import torch

        return getattr(layer.module, "weight", torch.empty(0))

    def merged(self, layer: Layer) -> Arrays:
        if not hasattr(layer.module, "merge_adapter"):
            raise Unsupported("it does not merge")
        layer.module.merge_adapter("it")
        return dict(W=layer.module.weight, b=layer.module.bias)

    def unmerged(self, layer: Layer) -> Arrays:
        self.merged(layer)
        layer.module.reset_adapter()
        return dict(W=layer.module.weight, b=layer.module.bias)

    def combine(self, case: Case) -> Arrays:
        """`Average` with weights that are not to be normalised."""
        torch = torch_of(case)
        from adapters.composition import Average

        parts = [dataclasses.replace(case, config=c) for c in case.options["adapters"]]
        configs = {str(i): self.config(part) for i, part in enumerate(parts)}
        active = Average(*configs, weights=list(case.options["weights"]), normalize_weights=False)
        layer = self.linear(case, configs, active).eval()
        for i in configs:
            known = dict(layer.loras[i].named_parameters())
            for name, key in THEIRS[case.method].items():
                self.put(case, known[key], f"{name}.{i}")
        with torch.no_grad():
            return dict(y=layer(self.input(case)).numpy())

    def load(self, case: Case) -> Arrays:
        raise Unsupported("adapters reads its own files, not those of Hugging Face PEFT")

    def init(self, case: Case) -> Arrays:
        found = self.fresh(case)
        return {k: found.ours(k, p) for k, p in found.parameters.items()}


implementation = Adapters()
