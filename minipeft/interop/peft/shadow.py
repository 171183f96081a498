"""ShadowPEFT in PEFT: the networks of each layer under the layer's name, the backbone once under its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.adapted import Adapter
from minipeft.errors import Bad
from minipeft.interop.peft.fields import (
    COMMON,
    COUNT,
    EXCLUDED,
    FLAG,
    INIT,
    LAYERS,
    NAME_OR_NAMES,
    NOT_NEGATIVE,
    NUMBER,
    RATE,
    TARGETS,
    WHOLE,
    Config,
    among,
    needed,
    optional,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.methods.routing.shadow import PARTS
from minipeft.model.arch import Arch

IGNORED = "PEFT passes it over where modules are named, as they are in a file"
KNOWN = COMMON | TARGETS | EXCLUDED | WHOLE | INIT | {
    "r": needed(COUNT, 8),
    "shadow_alpha": read(NUMBER, 0.1),
    "shadow_dropout": read(RATE, 0.2),
    "shadow_model": read(among("mirror"), "mirror"),
    "shadow_num_hidden_layers": read(optional(COUNT)),
    "shadow_hidden_size": read(optional(COUNT)),
    "shadow_num_attention_heads": read(optional(COUNT)),
    "shadow_intermediate_size": read(optional(COUNT)),
    "share_embeddings": read(FLAG, True),
    "update_hidden_size": read(optional(COUNT)),
    "auxiliary_loss_weight": read(NOT_NEGATIVE, 0.05),
    "layers_to_transform": plain(IGNORED, None, LAYERS),
    "layers_pattern": plain(IGNORED, None, NAME_OR_NAMES),
}  # fmt: skip
BLOCK = {"W_down": "shadow_down.default.weight", "W_up": "shadow_up.default.weight"} | {
    f"{ours}{n + 1}": f"shadow_update_{theirs}.default.{2 * n}.{leaf}"
    for theirs, letters in (("transform", "Tt"), ("gate", "Gg"))
    for ours, leaf in zip(letters, ("weight", "bias"), strict=True)
    for n in range(2)
}
ROOT = "base_model.shadow_backbone.default."
NORMS = {"attn.norm": "input_layernorm", "mlp.norm": "post_attention_layernorm"}


SIZES = dict(
    depth="shadow_num_hidden_layers", width="shadow_intermediate_size", hidden="update_hidden_size", inner="shadow_hidden_size",
    heads="shadow_num_attention_heads",
)  # fmt: skip
TASK = "CAUSAL_LM"


def _reads(config: Config, arch: Arch) -> Config:
    if config.get("task_type") == "SEQ_CLS":
        raise Bad("adapter_config.json: a SHADOW adapter for SEQ_CLS, whose shadow has a head of its own, is not read")
    own = {ours: config[theirs] for ours, theirs in SIZES.items() if config.get(theirs)}
    auxiliary = (
        config["auxiliary_loss_weight"] if config.get("task_type") == TASK else 0.0
    )  # of other tasks there is none
    return own | dict(table="base" if config["share_embeddings"] else "own", auxiliary=float(auxiliary))


def _backbone(config: Config, arch: Arch) -> Config:
    """The keys of the backbone, as many layers as there are."""

    def theirs(part: str) -> str:
        module, _, leaf = part.rpartition(".")
        return f"{NORMS.get(module) or module.replace('attn', 'self_attn') + '_proj'}.{leaf}"

    depth = config.get("shadow_num_hidden_layers") or 1
    parts = {a: part for a, part in PARTS.items() if part.endswith("weight") or part.split(".")[-2] in arch.biased}
    keys = {f"{a}{n}": Key(f"{ROOT}layers.{n}.{theirs(part)}") for n in range(depth) for a, part in parts.items()}
    keys["norm"] = Key(f"{ROOT}norm.weight")
    other = config.get("shadow_hidden_size") not in (None, arch.d)
    keys |= {"E": Key(f"{ROOT}embed_tokens.weight")} if other or config.get("share_embeddings") is False else {}
    keys |= {"P": Key("base_model.shadow_projection.default.weight")} if other else {}
    return dict(root_keys=keys)


def _writes(m: Any, arch: Arch) -> Config:
    task = dict(task_type=TASK) if m.auxiliary and arch.head == "lm" else {}
    sizes = {theirs: getattr(m, ours) or None for ours, theirs in SIZES.items()}
    own = dict(auxiliary_loss_weight=m.auxiliary, shadow_model="mirror", share_embeddings=m.table == "base")
    return sizes | own | task


def _one_row(adapter: Adapter, modules: Mapping[str, str], folder: Any) -> Config:
    """Nothing more. Raises `Bad` for layers with others between them, which PEFT cannot run."""
    at = sorted(int(site.partition(".")[2]) for site in modules)
    if at != list(range(at[0], at[0] + len(at))):
        raise Bad(f"shadow: PEFT wraps layers that follow one another, found {', '.join(map(str, at))}")
    return {}


SPEC = Spec(
    "SHADOW",
    KNOWN,
    keys={ours: Key(theirs) for ours, theirs in BLOCK.items()},
    settings=dict(r="r", alpha="shadow_alpha", dropout="shadow_dropout"),
    reads=_reads,
    writes=_writes,
    settled=_backbone,
    of_adapter=_one_row,
    keeps=lambda config: True,
    on_layers=True,
    also=("embed.out",),
    on_layer=False,
    trials=(
        Trial("llama", dict(r=3, alpha=0.7)),
        Trial("llama", dict(r=2, alpha=0.5, hidden=5, depth=2, width=7), dict(targets="embed.out layers.1"), "some"),
        Trial("mistral", dict(r=3, alpha=0.7, depth=2), name="mistral"),
        Trial("mistral", dict(r=3, alpha=0.7, heads=3, table="own"), name="own table"),
        Trial("llama", dict(r=3, alpha=0.7, inner=10, heads=2), name="narrow"),
    ),
)
