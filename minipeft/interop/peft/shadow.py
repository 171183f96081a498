"""ShadowPEFT in PEFT: the networks of each layer under the layer's name, the backbone once under its own, and a classifier's copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.adapted import Adapter
from minipeft.checkpoints import family_names
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
    whole,
)  # fmt: skip
from minipeft.interop.peft.names import prefix_of
from minipeft.interop.peft.spec import Key, Spec, Trial, turned
from minipeft.methods.routing.shadow import Shadow, backbone
from minipeft.model.arch import Arch
from minipeft.model.parts import shapes

IGNORED = "PEFT passes it over where modules are named, as they are in a file"
KNOWN = COMMON | TARGETS | EXCLUDED | WHOLE | INIT | {
    "r": needed(COUNT, 8),
    "shadow_alpha": read(NUMBER, 0.1),
    "shadow_dropout": read(RATE, 0.2),
    "shadow_model": read(among("mirror"), "mirror"),
    "shadow_num_hidden_layers": read(optional(whole(0))),  # 0 is what none is
    "shadow_hidden_size": read(optional(COUNT)),
    "shadow_num_attention_heads": read(optional(COUNT)),
    "shadow_intermediate_size": read(optional(COUNT)),
    "share_embeddings": read(FLAG, True),
    "update_hidden_size": read(optional(whole(0))),
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
NET, HEAD = "base_model.shadow_backbone.default.", "base_model.shadow_head.default."
FIRST = "embed.tokens.out"


SIZES = dict(
    depth="shadow_num_hidden_layers", width="shadow_intermediate_size", hidden="update_hidden_size", inner="shadow_hidden_size",
    heads="shadow_num_attention_heads",
)  # fmt: skip
TASKS = {"lm": "CAUSAL_LM", "classify": "SEQ_CLS"}  # with which there is a loss of the first state, by our head


def _reads(config: Config, arch: Arch) -> Config:
    own = {ours: config[theirs] for ours, theirs in SIZES.items() if config.get(theirs)}
    judges = config.get("task_type") == TASKS.get(arch.head, "")
    return own | dict(
        table="base" if config.get("share_embeddings", True) else "own",
        auxiliary=float(config.get("auxiliary_loss_weight", 0.05)) if judges and _judges(arch) else 0.0,
    )


def _judges(arch: Arch) -> bool:
    """Whether PEFT computes that loss: not with a classifier of several linears, which takes all tokens and is given one."""
    return arch.head in TASKS and "score.dense.weight" not in shapes(arch)


def _backbone(config: Config, arch: Arch) -> Config:
    """The keys of the backbone, in the family's own names, and of the classifier."""
    inner, named = backbone(Shadow(**_reads(config, arch)), arch, FIRST)
    names, start = family_names(inner), prefix_of(arch)

    def key(param: str) -> Key:
        module, _, leaf = param.rpartition(".")
        layouts = (turned, turned) if leaf == "weight" and names.is_transposed(module) else ()
        return Key(f"{NET}{str(names.theirs(module)).removeprefix(start)}.{leaf}", *layouts)

    keys = {a: key(param) for a, param in named.items()}
    keys |= {"P": Key("base_model.shadow_projection.default.weight")} if inner.d != arch.d else {}
    classifier = {"C": Key(f"{HEAD}weight")} | ({"c": Key(f"{HEAD}bias")} if "score" in arch.biased else {})
    table = [key("embed.tokens.weight").suffix] if "E" not in named else []
    judged = _reads(config, arch)["auxiliary"] > 0 and arch.head == "classify"
    return dict(
        root_keys=keys | classifier if judged else keys, idle=(*table, f"{NET}pooler.", *([] if judged else [HEAD]))
    )


def _told(config: Config, arch: Arch, shared: Mapping[str, Any]) -> Config:
    """GPT-2's feed-forward is four times as wide as the backbone, where the base's configuration leaves it open."""
    width = len(shared.get("up0", ()))
    wider = arch.fused_qkv and width == 4 * (config.get("shadow_hidden_size") or arch.d)
    return dict(width=width) if wider and not config.get("shadow_intermediate_size") and width != arch.ff else {}


def _writes(m: Any, arch: Arch) -> Config:
    sizes = {theirs: getattr(m, ours) or None for ours, theirs in SIZES.items()}
    sizes["shadow_intermediate_size"] = m.width or (arch.ff if m.inner else None)
    task = dict(task_type=TASKS[arch.head]) if m.auxiliary and _judges(arch) else {}
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
    told=_told,
    of_adapter=_one_row,
    keeps=lambda config: True,
    on_layers=True,
    also=(FIRST,),
    on_layer=False,
    trials=(
        Trial("llama", dict(r=3, alpha=0.7)),
        Trial(
            "llama", dict(r=2, alpha=0.5, hidden=5, depth=2, width=7), dict(targets="embed.tokens.out layers.1"), "some"
        ),
        Trial("mistral", dict(r=3, alpha=0.7, depth=2), name="mistral"),
        Trial("mistral", dict(r=3, alpha=0.7, heads=3, table="own"), name="own table"),
        Trial("llama", dict(r=3, alpha=0.7, inner=10, heads=2), name="narrow"),
        Trial("gpt2", dict(r=3, alpha=0.7, depth=2, width=7), name="gpt2"),
        Trial("gpt2", dict(r=3, alpha=0.7, inner=12, heads=2, table="own"), name="gpt2 narrow"),
        Trial("bert-cls", dict(r=3, alpha=0.7, hidden=2), name="bert"),
    ),
)
