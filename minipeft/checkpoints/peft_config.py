"""What adapter_config.json may hold: every field of PEFT 0.21.2 for every tuner that is read here, and what becomes of it.

Each field has a `Field`: what values it may have, and its fate. It is *read*; or it changes nothing that is computed here, and
`why` says so; or it is *refused* where it is set, as it changes what is computed and is not supported. `checked` judges a
configuration by this, before anything else is done with it. A field that PEFT 0.21.2 has not is named once and left alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minipeft.errors import Bad, near, note

Config = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A set of JSON values: a test, and its name in a message."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Field:
    """One field: its values, its fate ("read", "plain" or "refused"), its value where absent, and whether it must be there."""

    kind: Kind
    fate: str = "read"
    default: Any = None
    why: str = ""
    needed: bool = False


# --- kinds of values ----------------------------------------------------------------------------------------------------


def _is_number(v: Any) -> bool:
    if isinstance(v, bool) or not isinstance(v, int | float):
        return False
    try:
        return math.isfinite(float(v))
    except OverflowError:
        return False


def _is_regex(text: Any, template: str = "{}") -> bool:
    if not isinstance(text, str):
        return False
    try:
        re.compile(template.replace("{}", text))
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _are(v: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(v, list) and all(holds(x) for x in v)


def whole(low: int, high: int = 2**31 - 1) -> Kind:
    """Integers of a range."""
    return Kind(
        f"an integer of at least {low}" if high == 2**31 - 1 else f"an integer in {low} … {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def optional(kind: Kind) -> Kind:
    """The same, or null."""
    return Kind(f"{kind.words} or null", lambda v: v is None or kind.holds(v))


def among(*options: Any) -> Kind:
    """One of a few values."""
    return Kind(
        f"one of {', '.join(map(repr, options))}", lambda v: any(type(v) is type(o) and v == o for o in options)
    )


def pattern(kind: Kind) -> Kind:
    """A dictionary from regular expressions, which end a module's name, to values."""
    return Kind(
        f"a dictionary from regular expressions to {kind.words}",
        lambda v: (
            v is None
            or (isinstance(v, dict) and all(_is_regex(k, r"(.*\.)?({})$") and kind.holds(x) for k, x in v.items()))
        ),
    )


ANY = Kind("anything", lambda v: True)
FLAG = Kind("true or false", lambda v: v is None or isinstance(v, bool))
NUMBER = Kind("a finite number", _is_number)
POSITIVE = Kind("a number above 0", lambda v: _is_number(v) and v > 0)
RATE = Kind("a number in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1)
COUNT = whole(1)
RANK = Kind(
    "an integer of at least 1, a number in (0, 1] or null",
    lambda v: v is None or COUNT.holds(v) or (isinstance(v, float) and 0 < v <= 1),
)
SEED = Kind(
    "an integer of at most 64 bits", lambda v: isinstance(v, int) and not isinstance(v, bool) and -(2**63) <= v < 2**64
)
NAMES = Kind(
    "a list of names or a regular expression",
    lambda v: v is None or _are(v, lambda x: isinstance(x, str)) or _is_regex(v),
)
LIST = Kind("a list of names", lambda v: v is None or _are(v, lambda x: isinstance(x, str)))
NAME_OR_NAMES = Kind(
    "a name or a list of names", lambda v: v is None or isinstance(v, str) or _are(v, lambda x: isinstance(x, str))
)
LAYERS = Kind("an integer or a list of integers", lambda v: v is None or whole(0).holds(v) or _are(v, whole(0).holds))
IDS = Kind("a list of token ids", lambda v: _are(v, whole(0).holds))
TOKENS = Kind(
    "a list of token ids, or such a list for each module",
    lambda v: v is None or IDS.holds(v) or (isinstance(v, dict) and all(IDS.holds(x) for x in v.values())),
)
BIAS = Kind(
    "'none', 'all' or one that ends in '_only'",
    lambda v: v is None or v in ("none", "all") or (isinstance(v, str) and v.endswith("_only")),
)
TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
START = Kind(
    "true, false or the name of a start",
    lambda v: v is None or isinstance(v, bool) or (isinstance(v, str) and start_of(v) is not None),
)
STARTS = ("gaussian", "eva", "olora", "pissa", "pissa_niter_", "corda", "loftq", "orthogonal", "mica", "lora_ga")


def start_of(text: str) -> str | None:
    """Which of `STARTS` PEFT takes `init_lora_weights` for, None if for none. It is not equally strict about capitals."""
    if text.lower() in ("gaussian", "olora", "mica"):
        return text.lower()
    if text.startswith("pissa"):
        return "pissa" if text == "pissa" else "pissa_niter_" if re.fullmatch(r"pissa_niter_\d+", text) else None
    if text.startswith("corda"):
        return "corda"
    return text if text in STARTS else None


# --- fates ----------------------------------------------------------------------------------------------------------------


def read(kind: Kind, default: Any = None) -> Field:
    """A field that is honoured."""
    return Field(kind, "read", default)


def needed(kind: Kind, default: Any = None) -> Field:
    """The same, and PEFT always writes it: a file without it is none of PEFT's."""
    return Field(kind, "read", default, needed=True)


def plain(why: str, default: Any = None, kind: Kind = ANY) -> Field:
    """A field that changes nothing of what is computed with a file's tensors."""
    return Field(kind, "plain", default, why)


def refused(why: str, default: Any = None) -> Field:
    """A field that changes what is computed and is not supported: it must be empty, false or 0."""
    return Field(ANY, "refused", default, why)


ONLY_STARTS = "says how the arrays began; the file has them as they became"
LAYOUT = "PEFT finds out by itself how each layer stores its weight"

COMMON = {
    "peft_type": Field(Kind("a text", lambda v: isinstance(v, str)), needed=True),
    "task_type": read(optional(among(*TASKS))),
    "auto_mapping": read(optional(Kind("a dictionary", lambda v: isinstance(v, dict)))),
    "peft_version": plain("who wrote the file"),
    "base_model_name_or_path": plain("the base is given"),
    "revision": plain("the base is given"),
    "inference_mode": plain("whether PEFT freezes the arrays", False),
}
TARGETS = {"target_modules": read(NAMES)}
EXCLUDED = {"exclude_modules": read(NAMES)}
LAYERED = {"layers_to_transform": read(LAYERS), "layers_pattern": read(NAME_OR_NAMES)}
WHOLE = {"modules_to_save": read(LIST)}
CONV = {"fan_in_fan_out": plain(LAYOUT, False, FLAG)}
BIASES = {"bias": read(BIAS, "none")}
INIT = {"init_weights": plain(ONLY_STARTS, True)}

_LORA_FAMILY = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | {
    "trainable_token_indices": read(TOKENS),
    "lora_dropout": read(optional(RATE), 0.0),
    "megatron_config": plain("concerns layers of Megatron only"),
    "megatron_core": plain("concerns layers of Megatron only", "megatron.core"),
    "runtime_config": plain("where PEFT computes", None),
    "eva_config": plain(ONLY_STARTS),
    "corda_config": plain(ONLY_STARTS),
    "lora_ga_config": plain(ONLY_STARTS),
    "qalora_group_size": plain("goes with use_qalora", 16),
    "velora_config": refused("another gradient"),
    "alora_invocation_tokens": refused("acts on the last tokens only"),
    "use_qalora": refused("A is smaller than its input", False),
    "monteclora_config": refused("samples the factors"),
    "layer_replication": refused("another number of layers"),
    "target_parameters": refused("parameters of no linear"),
    "use_bdlora": refused("the factors are block-diagonal"),
    "arrow_config": refused("routes between adapters"),
    "kasa_config": refused("changes the base"),
    "ensure_weight_tying": refused("ties what PEFT else leaves apart", False),
}  # fmt: skip

_PROMPT = COMMON | WHOLE | {
    "num_virtual_tokens": needed(COUNT),
    "token_dim": read(optional(COUNT)),
    "num_transformer_submodules": read(optional(among(1, 2))),
    "num_attention_heads": read(optional(COUNT)),
    "num_layers": read(optional(COUNT)),
}  # fmt: skip

FIELDS: dict[str, dict[str, Field]] = {
    "LORA": _LORA_FAMILY | {
        "r": needed(COUNT, 8),
        "lora_alpha": needed(NUMBER, 8),
        "rank_pattern": read(pattern(COUNT), {}),
        "alpha_pattern": read(pattern(NUMBER), {}),
        "use_rslora": read(FLAG, False),
        "use_dora": read(FLAG, False),
        "lora_bias": read(FLAG, False),
        "init_lora_weights": read(START, True),
        "loftq_config": plain("goes with init_lora_weights='loftq'", {}),
    },
    "ADALORA": _LORA_FAMILY | {
        "r": plain("AdaLoRA starts with init_r", 8),
        "init_r": needed(COUNT, 12),
        "target_r": needed(COUNT, 8),
        "lora_alpha": needed(NUMBER, 8),
        "rank_pattern": plain("the file's arrays have the ranks that are left"),
        "alpha_pattern": plain("AdaLoRA has one lora_alpha", {}),
        "use_rslora": plain("AdaLoRA scales by lora_alpha alone", False),
        "lora_bias": plain("AdaLoRA has none", False),
        "init_lora_weights": plain(ONLY_STARTS, True),
        "use_dora": refused("PEFT has none for AdaLoRA", False),
        "loftq_config": refused("PEFT has none for AdaLoRA", {}),
        "tinit": needed(whole(0), 0),
        "tfinal": needed(whole(0), 0),
        "deltaT": needed(COUNT, 1),
        "beta1": needed(RATE, 0.85),
        "beta2": needed(RATE, 0.85),
        "orth_reg_weight": needed(Kind("a number of at least 0", lambda v: _is_number(v) and v >= 0), 0.5),
        "total_step": plain("when training ends"),
    },
    "OSF": COMMON | TARGETS | WHOLE | INIT | {
        "effective_rank": read(RANK),
        "rank_pattern": plain("the file's arrays have the rank that is left"),
        "target_svd_config": plain("the file's arrays have the rank that is left"),
    },
    "VERA": COMMON | TARGETS | LAYERED | WHOLE | CONV | BIASES | INIT | {
        "r": needed(COUNT, 256),
        "projection_prng_key": needed(SEED, 0),
        "save_projection": plain("A and B are made from projection_prng_key where the file has them not", True),
        "vera_dropout": read(optional(RATE), 0.0),
        "d_initial": needed(NUMBER, 0.1),
    },
    "FOURIERFT": COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | {
        "n_frequency": needed(COUNT, 1000),
        "n_frequency_pattern": read(pattern(COUNT), {}),
        "scaling": needed(NUMBER, 150.0),
        "random_loc_seed": needed(SEED, 777),
        "init_weights": plain(ONLY_STARTS, False),
    },
    "OFT": COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | BIASES | INIT | {
        "r": read(whole(0), 0),
        "oft_block_size": read(whole(0), 32),
        "module_dropout": plain("acts in training only; ours has none", 0.0, optional(RATE)),
        "coft": read(FLAG, False),
        "eps": read(NUMBER, 6e-05),
        "block_share": read(FLAG, False),
        "use_cayley_neumann": read(FLAG, True),
        "num_cayley_neumann_terms": read(whole(1, 1000), 5),
    },
    "LOHA": COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | INIT | {
        "r": needed(COUNT, 8),
        "alpha": needed(NUMBER, 8),
        "rank_pattern": read(pattern(COUNT), {}),
        "alpha_pattern": read(pattern(NUMBER), {}),
        "rank_dropout": read(optional(RATE), 0.0),
        "module_dropout": read(optional(RATE), 0.0),
        "use_effective_conv2d": plain("concerns convolutions only", False),
    },
    "IA3": COMMON | TARGETS | EXCLUDED | WHOLE | CONV | {
        "feedforward_modules": read(NAMES),
        "init_ia3_weights": plain(ONLY_STARTS, True),
    },
    "SHIRA": COMMON | TARGETS | WHOLE | CONV | INIT | {
        "r": needed(COUNT, 32),
        "mask_type": plain("the file has the places", "random"),
        "random_seed": read(optional(SEED)),
    },
    "TRAINABLE_TOKENS": COMMON | TARGETS | INIT | {"token_indices": needed(IDS, [])},
    "PROMPT_TUNING": _PROMPT | {
        "prompt_tuning_init": plain(ONLY_STARTS, "RANDOM"),
        "prompt_tuning_init_text": plain(ONLY_STARTS),
        "tokenizer_name_or_path": plain(ONLY_STARTS),
        "tokenizer_kwargs": plain(ONLY_STARTS),
    },
    "P_TUNING": _PROMPT | {
        "encoder_reparameterization_type": plain("the file has the prompt that the network made", "MLP"),
        "encoder_hidden_size": plain("the file has the prompt that the network made"),
        "encoder_num_layers": plain("the file has the prompt that the network made", 2),
        "encoder_dropout": plain("the file has the prompt that the network made", 0.0),
    },
    "PREFIX_TUNING": _PROMPT | {
        "init_weights": plain(ONLY_STARTS),
        "encoder_hidden_size": plain("the file has the prefixes that the network made"),
        "prefix_projection": plain("the file has the prefixes that the network made", False),
    },
    "ADAPTION_PROMPT": COMMON | TARGETS | {
        "adapter_len": needed(COUNT),
        "adapter_layers": needed(COUNT),
    },
    "XLORA": COMMON | {
        "hidden_size": read(optional(COUNT)),
        "adapters": read(optional(Kind("a dictionary of folders", lambda v: isinstance(v, dict)
                                       and all(isinstance(x, str) for x in v.values())))),
        "enable_softmax": read(FLAG, True),
        "enable_softmax_topk": read(FLAG, False),
        "layerwise_scalings": read(FLAG, False),
        "xlora_depth": read(whole(1, 1000), 1),
        "xlora_size": read(COUNT, 2048),
        "xlora_dropout_p": read(optional(RATE), 0.2),
        "use_trainable_adapters": read(FLAG, False),
        "softmax_temperature": read(POSITIVE, 1.0),
        "top_k_lora": read(optional(COUNT)),
        "scaling_pass_value": read(NUMBER, 0.0),
        "global_scaling_weight": read(NUMBER, 1.0),
    },
    "POLY": COMMON | TARGETS | EXCLUDED | WHOLE | INIT | {
        "r": needed(COUNT, 8),
        "poly_type": read(among("poly"), "poly"),
        "n_tasks": needed(COUNT, 1),
        "n_skills": needed(COUNT, 4),
        "n_splits": needed(COUNT, 1),
    },
}  # fmt: skip


def kind_of(config: Mapping[str, Any], where: Any = "adapter_config.json") -> str:
    """The peft_type of a configuration. Raises `Bad`, with near misses, for one that is not read here."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise Bad(
            f"{where}: peft_type {kind!r} is not supported; expected one of {', '.join(sorted(FIELDS))}"
            f"{near(str(kind), FIELDS)}"
        )
    return kind


def checked(config: Mapping[str, Any], where: Any = "adapter_config.json") -> Config:
    """The configuration, with what PEFT takes for the fields that it lacks.

    Raises `Bad`, in one line, for a value that its field cannot have and for a field that is refused; names once what is no
    field of PEFT 0.21.2.
    """
    kind = kind_of(config, where)
    known = FIELDS[kind]
    out = dict(config)
    for name, field in known.items():
        if name not in config:
            if field.needed:
                raise Bad(f"{where}: a {kind} adapter needs {name!r}")
            if field.fate == "read":
                out[name] = field.default
        elif field.fate == "refused" and config[name] and config[name] != field.default:
            raise Bad(f"{where}: {name} is not supported for {kind}: {field.why}")
        elif not field.kind.holds(config[name]):
            raise Bad(f"{where}: {name}: expected {field.kind.words}, found {_short(config[name])}")
    if strange := sorted(set(config) - set(known)):
        note(f"{where}: {', '.join(map(repr, strange))}: unknown to PEFT 0.21.2 for {kind}, and not honoured")
    return out


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
