"""Llama, and its rows Mistral (a sliding window) and Qwen2 (biases on q, k, v).

Source: the checkpoints' config.json; Touvron et al. 2023, https://arxiv.org/abs/2302.13971, §2.2.
"""

from __future__ import annotations

from typing import Any

from minipeft.checkpoints.config import (
    COUNT,
    FLAG,
    LAYERS,
    OBJECT,
    POSITIVE,
    TEXT,
    WHOLE,
    WORDS,
    Fields,
    activation,
    divides,
)
from minipeft.errors import Bad, near
from minipeft.model.arch import Arch
from minipeft.shown import shortly

_SHARED = dict(
    hidden_size=WHOLE,
    num_hidden_layers=LAYERS,
    num_attention_heads=WHOLE,
    num_key_value_heads=WHOLE.or_(None),
    head_dim=WHOLE.or_(None),
    intermediate_size=WHOLE,
    vocab_size=WHOLE,
    max_position_embeddings=WHOLE.or_(2048),
    rms_norm_eps=POSITIVE.or_(1e-6),
    hidden_act=TEXT.or_("silu"),
    rope_parameters=OBJECT.or_(None),
    rope_scaling=OBJECT.or_(None),
    rope_theta=POSITIVE.or_(10000.0, null=True),
    tie_word_embeddings=FLAG.or_(False),
)
_ONLY: dict[str, tuple] = dict(
    partial_rotary_factor=(1, 1.0), attn_logit_softcapping=(), final_logit_softcapping=(), clip_qkv=()
)
_IDLE = {
    "dropout": "attention_dropout classifier_dropout hidden_dropout",
    "another order of the same sums": "pretraining_tp",
    "nothing looks at it": "is_decoder",
}
FIELDS = {
    "llama": Fields(_SHARED | dict(attention_bias=FLAG.or_(False), mlp_bias=FLAG.or_(False)), _ONLY, _IDLE),
    "mistral": Fields(
        _SHARED
        | dict(
            max_position_embeddings=WHOLE.or_(131072),
            num_key_value_heads=WHOLE.or_(8, null=True),
            sliding_window=WHOLE.or_(4096, null=True),
        ),
        _ONLY,
        _IDLE,
    ),
    "qwen2": Fields(
        _SHARED
        | dict(
            max_position_embeddings=WHOLE.or_(32768),
            num_key_value_heads=WHOLE.or_(32, null=True),
            use_sliding_window=FLAG.or_(False),
            sliding_window=WHOLE.or_(4096, null=True),
            max_window_layers=COUNT.or_(28),
            layer_types=WORDS.or_(None),
        ),
        _ONLY,
        _IDLE,
    ),
}  # fmt: skip  # transformers has no biases but Llama's and Qwen2's own, and windows only in Mistral and Qwen2
LAYER_TYPES = ("full_attention", "sliding_attention")
ROPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}  # rotary scalings, and the numbers that each needs


def rope(config: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """The base of the rotary angles and their scaling. Raises `Bad` for a scaling that is not computed, or lacks a number."""
    given = {k: v for k, v in (config["rope_scaling"] or config["rope_parameters"] or {}).items() if v is not None}
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    if not isinstance(kind, str) or kind not in ROPE:
        raise Bad(
            f"config.json: rope scaling {shortly(kind)} is not supported; expected one of {', '.join(ROPE)}{near(str(kind), ROPE)}"
        )
    theta = given.pop("rope_theta", config["rope_theta"] or 10000.0)
    if given.pop("partial_rotary_factor", 1) != 1:
        raise Bad("config.json: partial_rotary_factor of rope is not supported; expected 1.0")
    if kind == "llama3":
        given.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    for name, value in {"rope_theta": theta, **{k: given.get(k) for k in ROPE[kind]}}.items():
        if not POSITIVE.fits(value):
            raise Bad(f"config.json: {name} of {kind} rope: expected {POSITIVE.expected}, found {shortly(value)}")
    if strange := sorted(
        given.keys() - set(ROPE[kind]) - (set() if kind != "default" else {k for v in ROPE.values() for k in v})
    ):
        raise Bad(f"config.json: {kind} rope with {strange[0]}={shortly(given[strange[0]])} is not supported")
    if kind == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
        raise Bad("config.json: high_freq_factor of llama3 rope must be above low_freq_factor")
    return float(theta), {"rope_type": kind, **{k: given[k] for k in ROPE[kind]}}


def full_layers(config: dict[str, Any]) -> tuple[int | None, tuple[int, ...]]:
    """The sliding window, and the layers that see all all the same.

    Every layer of Mistral has its window. Qwen2 has one if `use_sliding_window` says so, in the layers that `layer_types`
    names or, without it, in those after the first `max_window_layers`.
    """
    window, layers = config.get("sliding_window"), config["num_hidden_layers"]
    if config["model_type"] != "qwen2":
        return window, ()
    window = window if config["use_sliding_window"] else None
    first = config["max_window_layers"]
    types = config["layer_types"]
    if types is None:
        types = [LAYER_TYPES[window is not None and n >= first] for n in range(layers)]
    if len(types) != layers:
        raise Bad(f"config.json: layer_types: expected one for each of {layers} layers, found {len(types)}")
    if strange := [t for t in types if t not in LAYER_TYPES]:
        raise Bad(
            f"config.json: layer_types: expected {' or '.join(LAYER_TYPES)}, found {strange[0]!r}{near(strange[0], LAYER_TYPES)}"
        )
    if window is None and "sliding_attention" in types:
        raise Bad(
            "config.json: layer_types has sliding_attention, but use_sliding_window and sliding_window give no window"
        )
    full = tuple(n for n, t in enumerate(types) if t == "full_attention")
    return (None, ()) if len(full) == layers else (window, full)


def of_layers(arch: Arch) -> dict[str, Any]:
    """What config.json says of the single layers: the other way round."""
    if "layer_types" not in FIELDS[arch.family].read:
        return {}
    return dict(layer_types=[LAYER_TYPES[arch.window_of(n) is not None] for n in range(arch.layers)])


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json. Older files hold the rotary settings in rope_theta and rope_scaling."""
    family = config["model_type"]
    heads = config["num_attention_heads"]
    kv = config["num_key_value_heads"] or heads
    if config["head_dim"] is None:
        divides(config, "num_attention_heads", "hidden_size")
    if heads % kv:
        raise Bad(f"config.json: num_attention_heads={heads} is no multiple of num_key_value_heads={kv}")
    if (width := config["head_dim"] or config["hidden_size"] // heads) % 2:
        raise Bad(f"config.json: rotary positions turn pairs of numbers; expected heads of even width, found {width}")
    theta, scaling = rope(config)
    window, full = full_layers(config)
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    biased: tuple[str, ...] = ("q", "k", "v") if family == "qwen2" or attention_bias else ()
    biased += ("o",) if attention_bias else ()
    biased += ("gate", "up", "down") if mlp_bias else ()
    return Arch(
        family=family,
        d=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=kv,
        head_dim=config["head_dim"] or 0,
        ff=config["intermediate_size"],
        vocab=config["vocab_size"],
        norm="rms",
        eps=config["rms_norm_eps"],
        act=activation(config["hidden_act"]),
        gated=True,
        positions="rope",
        rope_theta=theta,
        rope_scaling=tuple(sorted(scaling.items())),
        window=window,
        full_layers=full,
        tied=config["tie_word_embeddings"],
        biased=biased,
    )


def table(arch: Arch) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our module names and theirs."""
    layer = "model.layers.{n}."
    return {
        "embed.tokens": "model.embed_tokens",
        **{f"layers.{{n}}.attn.{m}": f"{layer}self_attn.{m}_proj" for m in "qkvo"},
        "layers.{n}.attn.norm": f"{layer}input_layernorm",
        **{f"layers.{{n}}.mlp.{m}": f"{layer}mlp.{m}_proj" for m in ("gate", "up", "down")},
        "layers.{n}.mlp.norm": f"{layer}post_attention_layernorm",
        "final.norm": "model.norm",
        "head": "lm_head",
        "score": "score",
    }, ()


BIASES = {"llama": {"attention_bias": ("q", "k", "v", "o"), "mlp_bias": ("gate", "up", "down")}}
# family -> switch in config.json -> the linears of every layer that then have a bias

PREFIX = dict.fromkeys(("llama", "mistral", "qwen2"), "model.")
SPARE = ("lm_head", "score", "qa_outputs")  # what other heads have
