"""T5, with the plain and the gated feed-forward. Source: config.json; Raffel et al. 2019, https://arxiv.org/abs/1910.10683."""

from __future__ import annotations

from typing import Any

from minipeft.checkpoints.gpt2 import activation
from minipeft.model.arch import Arch


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json."""
    ff = config.get("feed_forward_proj", "relu")
    gated = ff.startswith("gated-")
    act = "gelu_new" if ff == "gated-gelu" else ff.removeprefix("gated-")
    tied = config.get("tie_word_embeddings", True)
    return Arch(
        family="t5",
        d=config["d_model"],
        layers=config.get("num_decoder_layers") or config["num_layers"],
        encoder_layers=config["num_layers"],
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        ff=config["d_ff"],
        vocab=config["vocab_size"],
        norm="rms",
        eps=config.get("layer_norm_epsilon", 1e-6),
        act=activation(act),
        gated=gated,
        positions="relative",
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        scale=1.0,
        tied=tied,
        head_scale=config["d_model"] ** -0.5 if config.get("scale_decoder_outputs", tied) else 1.0,
    )


def table(arch: Arch) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our module names and theirs."""
    names = {"embed.tokens": "shared", "head": "lm_head"}
    mlp = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if arch.gated else {"up": "wi", "down": "wo"}
    for ours, theirs, parts in (
        ("encoder.", "encoder", {"attn": "SelfAttention"}),
        ("", "decoder", {"attn": "SelfAttention", "cross": "EncDecAttention"}),
    ):
        block = f"{theirs}.block.{{n}}.layer."
        for i, (part, module) in enumerate(parts.items()):
            names |= {f"{ours}layers.{{n}}.{part}.{m}": f"{block}{i}.{module}.{m}" for m in "qkvo"}
            names[f"{ours}layers.{{n}}.{part}.norm"] = f"{block}{i}.layer_norm"
        last = len(parts)
        names |= {f"{ours}layers.{{n}}.mlp.{m}": f"{block}{last}.DenseReluDense.{w}" for m, w in mlp.items()}
        names[f"{ours}layers.{{n}}.mlp.norm"] = f"{block}{last}.layer_norm"
        names[f"{ours}final.norm"] = f"{theirs}.final_layer_norm"
        names[f"{ours}relbias"] = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias"
    return names, ()
