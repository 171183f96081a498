"""ViT. Source: config.json; Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929. The patch convolution becomes a linear."""

from __future__ import annotations

from typing import Any

from minipeft.checkpoints.gpt2 import activation
from minipeft.model.arch import Arch


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json."""
    biased = ("o", "up", "down", "embed.patch") + (("q", "k", "v") if config.get("qkv_bias", True) else ())
    return Arch(
        family="vit",
        d=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ff=config["intermediate_size"],
        eps=config.get("layer_norm_eps", 1e-12),
        causal=False,
        act=activation(config.get("hidden_act", "gelu")),
        patch=config["patch_size"],
        image=config["image_size"],
        channels=config.get("num_channels", 3),
        pool="first",
        biased=biased,
    )


def table(arch: Arch) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our module names and theirs."""
    layer = "vit.encoder.layer.{n}."
    return {
        "embed.cls": "vit.embeddings.cls_token",
        "embed.positions.weight": "vit.embeddings.position_embeddings",
        "embed.patch": "vit.embeddings.patch_embeddings.projection",
        **{
            f"layers.{{n}}.attn.{m}": f"{layer}attention.attention.{theirs}"
            for m, theirs in {"q": "query", "k": "key", "v": "value"}.items()
        },
        "layers.{n}.attn.o": f"{layer}attention.output.dense",
        "layers.{n}.attn.norm": f"{layer}layernorm_before",
        "layers.{n}.mlp.up": f"{layer}intermediate.dense",
        "layers.{n}.mlp.down": f"{layer}output.dense",
        "layers.{n}.mlp.norm": f"{layer}layernorm_after",
        "final.norm": "vit.layernorm",
        "score": "classifier",
    }, ()


BIASES = {"vit": {"qkv_bias": ("q", "k", "v")}}
PREFIX = {"vit": "vit."}
