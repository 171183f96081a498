"""LoRA in PEFT, and what DoRA, PiSSA and others have of it: they are settings of one tuner there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from minipeft.adapted import Adapter
from minipeft.engine.backend import to_host
from minipeft.errors import Bad, note
from minipeft.interop.peft.fields import (
    BIASES,
    COMMON,
    CONV,
    COUNT,
    EXCLUDED,
    FLAG,
    IDS,
    LAYERED,
    LIST,
    NOT_NEGATIVE,
    NUMBER,
    ONLY_STARTS,
    POSITIVE,
    RATE,
    REPEATED,
    SEED,
    TARGETS,
    TOKENS,
    WHOLE,
    Config,
    Kind,
    among,
    group,
    needed,
    optional,
    pattern,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.kernels import channels, kernel, point
from minipeft.interop.peft.names import Naming
from minipeft.interop.peft.spec import LEFT, Key, Spec, Trial, never, remade, transposed, turned
from minipeft.method import method_class
from minipeft.model.arch import Arch
from minipeft.model.base import Model

STARTS = ("gaussian", "eva", "olora", "pissa", "pissa_niter_", "corda", "loftq", "orthogonal", "mica", "lora_ga")
CHANGING = ("pissa", "olora", "loftq")  # the base, and so again when a file is loaded
APART = (*CHANGING, "orthogonal", "mica")  # whose factors begin as arrays of their own, also those of a tied head
VARIANTS = (  # of which PEFT takes one
    "use_dora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "alora_invocation_tokens",
    "velora_config",
)
CONVERT = "save the adapter with path_initial_model_for_weight_conversion"
BASE_CHANGED = {  # starts that leave another base behind, which a file of the trained factors does not tell; what to do
    "pissa_niter_": ("from a decomposition that begins at random", CONVERT),
    "corda": ("from a decomposition that needs the data", CONVERT),
}


def start_of(text: str) -> str | None:
    """Which of `STARTS` PEFT takes `init_lora_weights` for, None if for none. It is not equally strict about capitals."""
    if text.lower() in ("gaussian", "olora", "mica"):
        return text.lower()
    if text.startswith("pissa"):
        return "pissa" if text == "pissa" else "pissa_niter_" if re.fullmatch(r"pissa_niter_\d+", text) else None
    if text.startswith("corda"):
        return "corda"
    return text if text in STARTS else None


START = Kind(
    "true, false or the name of a start",
    lambda v: v is None or isinstance(v, bool) or (isinstance(v, str) and start_of(v) is not None),
)

FACTORS = COMMON | TARGETS | EXCLUDED | LAYERED | REPEATED | WHOLE | CONV | BIASES | {
    "trainable_token_indices": read(TOKENS),
    "lora_dropout": read(optional(RATE), 0.0),
    "megatron_config": plain("concerns layers of Megatron only"),
    "megatron_core": plain("concerns layers of Megatron only", "megatron.core"),
    "runtime_config": plain("where PEFT computes"),
    "eva_config": plain(ONLY_STARTS),
    "corda_config": plain(ONLY_STARTS),
    "lora_ga_config": plain(ONLY_STARTS),
    "ensure_weight_tying": read(FLAG, False),
}  # fmt: skip

KNOWN = FACTORS | {
    "r": needed(COUNT, 8),
    "lora_alpha": needed(NUMBER, 8),
    "rank_pattern": read(pattern(COUNT), {}),
    "alpha_pattern": read(pattern(NUMBER), {}),
    "use_rslora": read(FLAG, False),
    "use_dora": read(FLAG, False),
    "lora_bias": read(FLAG, False),
    "target_parameters": read(LIST),
    "init_lora_weights": read(START, True),
    "loftq_config": read(group(loftq_bits=among(4, 8), loftq_iter=COUNT), {}),
    "use_bdlora": read(group(target_modules_bd_a=LIST, target_modules_bd_b=LIST, nblocks=COUNT, match_strict=FLAG)),
    "use_qalora": read(FLAG, False),
    "qalora_group_size": read(COUNT, 16),
    "arrow_config": read(
        group(
            top_k=COUNT,
            router_temperature=POSITIVE,
            use_gks=FLAG,
            task_adapter_names=LIST,
            gks_adapter_names=LIST,
            rng_seed=optional(SEED),
        )
    ),
    "velora_config": read(
        group(num_groups=COUNT, scale=POSITIVE, init_type=among("batch_average", "batch_average_once", "random"))
    ),
    "alora_invocation_tokens": read(optional(IDS)),
    "monteclora_config": read(
        group(
            num_samples=COUNT,
            use_entropy=FLAG,
            dirichlet_prior=POSITIVE,
            sample_scaler=NOT_NEGATIVE,
            kl_loss_weight=NOT_NEGATIVE,
            buffer_size=COUNT,
        )
    ),
    "kasa_config": read(group(beta=NOT_NEGATIVE, gamma=NOT_NEGATIVE)),
}


def began(config: Config) -> str | None:
    """How the factors began, if not as usual."""
    start = config.get("init_lora_weights", True)
    return start_of(start) if isinstance(start, str) else None


def beside(config: Config) -> str | None:
    """The same, if what they take out of the base stands beside it."""
    return None if config.get(LEFT) else began(config)


def chosen(config: Config) -> list[str]:
    """Which variants a configuration has."""
    return [name for name in VARIANTS if config.get(name) not in (None, False, [])]


def principal(config: Config) -> bool:
    """Whether a part of the base that they began as stands beside it."""
    return beside(config) in FACTORS_OF


def straight(naming: Naming) -> bool:
    """Whether no linear of the base is stored as (in, out)."""
    names = naming.model.names
    return not any(names.is_transposed(n.removesuffix(".weight")) for n in naming.model.params)


def beside_base(config: Config, naming: Naming) -> bool:
    """Whether what they take out of the base is as ours: of W, and not of its transpose, which PEFT's QR has of what is stored so."""
    return began(config) in FACTORS_OF and (began(config) != "olora" or straight(naming))


def fewer(config: Config, arrays: Mapping[str, Any]) -> Config:
    """The rank and α of factors that began as a part of the base, whose smaller side is below the rank: there are no more."""
    A, B, r = arrays.get("A"), arrays.get("B"), config["r"]
    if began(config) not in CHANGING or A is None or B is None or not len(A) == min(A.shape[1], len(B)) < r:
        return {}
    share = len(A) / r
    return dict(r=len(A), alpha=config["lora_alpha"] * (share**0.5 if config.get("use_rslora") else share))


FACTORS_OF = {"pissa": "svd", "olora": "qr"}  # init_lora_weights -> our word
BEGIN = {"zero": True} | {ours: theirs for theirs, ours in FACTORS_OF.items()}


def factors_of(config: Config, arch: Arch, setting: str) -> Config:
    """Our setting for the part of the base that the factors began as."""
    factors = FACTORS_OF.get(beside(config) or "")
    if factors is None:
        return {}
    refuse_transposed(BEGIN[factors], arch)
    return {setting: factors}


def refuse_transposed(start: Any, arch: Arch) -> None:
    """Raises `Bad` where PEFT's factors would not fit."""
    if start in ("olora", "loftq") and arch.family == "gpt2":
        raise Bad(
            f"init_lora_weights={start!r}: PEFT decomposes the weights of {arch.family} transposed, so that the factors do not fit"
        )


def _drawn(config: Config, arch: Arch) -> Config:
    """How they were drawn, if not as usual."""
    return dict(start=began(config)) if began(config) in ("gaussian", "orthogonal") else {}


def refuse_shared(config: Config) -> None:
    """Raises `Bad` for what changes a bias of the base, which is one in all copies of a layer."""
    taken = [n for start, end in config.get("layer_replication") or () for n in range(start, end)]
    if len(set(taken)) < len(taken) and (config.get("bias") or "none") != "none":
        raise Bad(
            f"adapter_config.json: bias={config['bias']!r} beside layer_replication: PEFT has one weight for all copies of a layer, "
            "and each of them would change it"
        )


def refuse_beside_parameters(config: Config) -> None:
    """Raises `Bad` for what PEFT has not on parameters, or passes over there."""
    fields = ("lora_dropout", "lora_bias", "fan_in_fan_out", *VARIANTS, "arrow_config")
    odd = [name for name in fields if config.get(name) not in (None, False, 0, [])]
    odd += [f"init_lora_weights={config['init_lora_weights']!r}"] if began(config) in ("mica", "loftq") else []
    if config.get("target_parameters") and odd:
        raise Bad(f"adapter_config.json: target_parameters beside {odd[0]}: PEFT adapts parameters by plain LoRA alone")


def _examine(config: Config) -> None:
    refuse_shared(config)
    refuse_beside_parameters(config)
    start = config.get("init_lora_weights")
    variants = chosen(config) + ["init_lora_weights='mica'"] * (start == "mica")  # in other letters it is a start alone
    if len(variants) > 1 and not config.get("use_qalora"):  # which GPTQ's layers have beside any
        raise Bad(f"adapter_config.json: expected one variant of LoRA, found {' and '.join(variants)}")
    if (found := began(config)) in BASE_CHANGED:
        how, instead = BASE_CHANGED[found]
        raise Bad(
            f"adapter_config.json: init_lora_weights={start!r} changed the base, {how}: it cannot be made again from this file; "
            f"{instead}, which makes it plain LoRA"
        )
    if found == "lora_ga":
        note(
            "adapter_config.json: init_lora_weights='lora_ga': PEFT loads this on the base as it is, and so do we; it was "
            "trained on a base without its first factors, unless it was saved with path_initial_model_for_weight_conversion"
        )


def _patterns(config: Config) -> dict[str, Config]:
    """The rank and the scale of a module are those of the patterns, not the defaults."""
    own = dict(rank_pattern={"layer": config["r"]}, alpha_pattern={"layer": config["lora_alpha"]})
    return {"pattern": own | dict(r=5, lora_alpha=11)}


def written(m: Any, arch: Arch, **more: Any) -> Config:
    """The further fields of a method of this tuner."""
    return transposed(arch) | dict(init_lora_weights=True) | more


def refuse_turned(model: Model | None, adapter: Adapter) -> Adapter:
    """Raises `Bad` for weights that are stored as (in, out), where PEFT has no such variant; a linear alone is not."""
    if model is None:
        return adapter
    for site, m in adapter.at.items():
        if type(m) is type(adapter.method) and model.names.is_transposed(site.removesuffix(".weight")):
            raise Bad(
                f"{m.name} cannot be written for PEFT at {site}: it has none on weights that are stored as (in, out)"
            )
    return adapter


TUNER = Spec(
    "LORA",
    KNOWN,
    keys={
        "A": Key("lora_A.weight", size="(r, in)"),
        "B": Key("lora_B.weight", size="(out, r)"),
        "c": Key("lora_B.bias", size="(out) with `lora_bias`"),
        "m": Key("lora_magnitude_vector", size="(out) with `use_dora`"),
    },
    embedding_keys={
        "A": Key("lora_embedding_B", turned, turned),
        "B": Key("lora_embedding_A", turned, turned),
        "m_emb": Key("lora_magnitude_vector"),
    },
    patches="PEFT has plain LoRA and DoRA for convolutions, from drawn factors, and no other",
    settings=dict(r="r", alpha="lora_alpha", dropout="lora_dropout", rslora="use_rslora", lora_bias="lora_bias"),
    writes=written,
    patterns=dict(rank_pattern="r", alpha_pattern="alpha"),
    at_site=fewer,
    parts=lambda config: began(config) in APART,
    rejoins=lambda config: began(config) == "lora_ga",
    begins=("init_lora_weights", "loftq_config"),
    wide=("peft.tuners.lora.layer",),
    traced=dict(base="base_layer", h="lora_A.default", low="lora_B.default"),
)


PATCHES = {
    "A": kernel("lora_A.weight"),
    "B": point("lora_B.weight"),
    "c": Key("lora_B.bias"),
    "m": channels("lora_magnitude_vector"),
}


def _writes(m: Any, arch: Arch) -> Config:
    # PEFT refuses "gaussian" beside a bias, and "orthogonal" for odd ranks, when it loads what it then replaces
    return written(m, arch, init_lora_weights="gaussian" if m.start == "gaussian" and not m.lora_bias else True)


AGAIN = ((0, 2), (0, 1))
SPEC = dataclasses.replace(
    TUNER,
    patches=PATCHES,
    reads=_drawn,
    writes=_writes,
    examine=_examine,
    variants=_patterns,
    combined=True,
    trials=(
        Trial("llama", dict(r=3, alpha=5.0), dict(targets="all-linear", patterns={"q_proj": dict(r=2, alpha=7.0)})),
        Trial("gpt2", dict(r=3, alpha=5.0, rslora=True), name="rslora"),
        Trial("gpt2", dict(r=2, lora_bias=True), name="bias"),
        Trial("llama", dict(r=2), dict(targets="embed_tokens lm_head"), name="embedding"),
        Trial("bert-cls", dict(r=2), dict(train_whole=["classifier"], bias="adapted"), name="trained whole"),
        Trial("bert-cls", dict(r=2), dict(bias="all"), name="all biases"),
        Trial("llama-cls", dict(r=2), dict(train_whole=["score"]), name="on a classifier"),
        Trial("t5", dict(r=2), dict(targets="q v wi"), name="t5"),
        Trial("bert-cls", dict(r=2), dict(targets="query", patterns={"layers.2.*": dict(r=3)}), "layers", layers=AGAIN),
        Trial("mistral", dict(r=2), dict(targets="o_proj", train_whole=["layers.1.mlp"]), "mistral", layers=AGAIN),
        Trial("vit-channels", dict(r=3, lora_bias=True), dict(targets="projection q_proj"), name="patches"),
    ),
)


def doubled(m: Any) -> Any:
    """LoRA of twice the rank and the same scale."""
    plain: Any = method_class("lora")
    return plain(r=2 * m.r, alpha=m.alpha * (2**0.5 if m.rslora else 2), dropout=m.dropout, rslora=m.rslora)


def as_lora(model: Model, adapter: Adapter) -> Adapter:
    """Factors A0, B0 that are subtracted from the base, as further directions: B A − B0 A0 = [B, B0] [A; −A0]."""
    at = {site: doubled(m) for site, m in adapter.at.items() if m.name == adapter.method.name}
    arrays = {}
    for site, own in adapter.grouped().items():
        if site in at:
            own = {k: to_host(a) for k, a in own.items()}
            arrays[f"{site}:A"] = np.concatenate([own["A"], -own["A0"]])
            arrays[f"{site}:B"] = np.concatenate([own["B"], own["B0"]], axis=1)
    return remade(adapter, doubled(adapter.method), at, arrays)


CONVERTED = dataclasses.replace(  # what began as a part of the base that no file tells: plain LoRA of twice the rank
    TUNER,
    writes=lambda m, arch: TUNER.write(doubled(m), arch),
    claims=never,
    plain=as_lora,
)
