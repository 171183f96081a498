"""Llama, and its rows Mistral (a sliding window) and Qwen2 (biases on q, k, v).

Source: the checkpoints' config.json; Touvron et al. 2023, https://arxiv.org/abs/2302.13971, §2.2.
"""

from __future__ import annotations

from typing import Any

from minipeft.model.arch import Arch


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json. Older files hold the rotary settings in rope_theta and rope_scaling."""
    family = config["model_type"]
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", config.get("rope_theta", 10000.0))
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    biased: tuple[str, ...] = ("q", "k", "v") if family == "qwen2" or attention_bias else ()
    biased += ("o",) if attention_bias else ()
    biased += ("gate", "up", "down") if mlp_bias else ()
    window = config.get("sliding_window") if family == "mistral" or config.get("use_sliding_window") else None
    return Arch(
        family=family,
        d=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=config.get("head_dim") or 0,
        ff=config["intermediate_size"],
        vocab=config["vocab_size"],
        norm="rms",
        eps=config["rms_norm_eps"],
        act=config.get("hidden_act", "silu"),
        gated=True,
        positions="rope",
        rope_theta=theta,
        rope_scaling=tuple(sorted(rope.items())),
        window=window,
        tied=config.get("tie_word_embeddings", False),
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
