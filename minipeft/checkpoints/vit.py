"""ViT. Source: config.json; Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929. The patch convolution becomes a linear."""

from __future__ import annotations

from typing import Any

from minipeft.checkpoints.config import FLAG, LAYERS, POSITIVE, SIZE, TEXT, WHOLE, Fields, activation, divides
from minipeft.model.arch import Arch

FIELDS = Fields(
    read=dict(
        hidden_size=WHOLE,
        num_hidden_layers=LAYERS,
        num_attention_heads=WHOLE,
        head_dim=WHOLE.or_(None),
        intermediate_size=WHOLE,
        layer_norm_eps=POSITIVE.or_(1e-12),
        hidden_act=TEXT.or_("gelu"),
        image_size=SIZE,
        patch_size=SIZE,
        num_channels=WHOLE.or_(3),
        qkv_bias=FLAG.or_(True),
    ),
    only=dict(use_mean_pooling=(False,)),
    idle={
        "dropout": "hidden_dropout_prob attention_probs_dropout_prob",
        "of the pooler, which no head here has": "pooler_output_size pooler_act",
        "of a decoder of images": "encoder_stride",
        "there are no tokens": "tie_word_embeddings is_decoder vocab_size",
    },
)


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json."""
    if config["head_dim"] is None:
        divides(config, "num_attention_heads", "hidden_size")
    sides = {k: v[0] if isinstance(v := config[k], list) else v for k in ("image_size", "patch_size")}
    biased = ("o", "up", "down", "embed.patch") + (("q", "k", "v") if config["qkv_bias"] else ())
    return Arch(
        family="vit",
        d=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        head_dim=config["head_dim"] or 0,
        ff=config["intermediate_size"],
        eps=config["layer_norm_eps"],
        causal=False,
        act=activation(config["hidden_act"]),
        patch=sides["patch_size"],
        image=sides["image_size"],
        channels=config["num_channels"],
        pool="first",
        biased=biased,
    )


def table(arch: Arch) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our module names and theirs, those of transformers 5."""
    layer = "vit.layers.{n}."
    return {
        "embed.cls": "vit.embeddings.cls_token",
        "embed.positions.weight": "vit.embeddings.position_embeddings",
        "embed.patch": "vit.embeddings.patch_embeddings.projection",
        **{f"layers.{{n}}.attn.{m}": f"{layer}attention.{m}_proj" for m in "qkvo"},
        "layers.{n}.attn.norm": f"{layer}layernorm_before",
        "layers.{n}.mlp.up": f"{layer}mlp.fc1",
        "layers.{n}.mlp.down": f"{layer}mlp.fc2",
        "layers.{n}.mlp.norm": f"{layer}layernorm_after",
        "final.norm": "vit.layernorm",
        "pooler": "vit.pooler.dense",  # which no head here has
        "score": "classifier",
    }, ()


def stored(arch: Arch) -> dict[str, str]:
    """What differs in files: the names of transformers 4, which version 5 reads and writes too."""
    layer = "vit.encoder.layer.{n}."
    parts = {"q": "attention.attention.query", "k": "attention.attention.key", "v": "attention.attention.value"}
    parts = {f"attn.{m}": theirs for m, theirs in (parts | {"o": "attention.output.dense"}).items()}
    parts |= {
        "attn.norm": "layernorm_before",
        "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
        "mlp.norm": "layernorm_after",
    }
    return {f"layers.{{n}}.{ours}": layer + theirs for ours, theirs in parts.items()}


BIASES = {"vit": {"qkv_bias": ("q", "k", "v")}}
PREFIX = {"vit": "vit."}
UNREAD = ("vit.pooler",)  # changes no output
SPARE = ("vit.pooler", "vit.embeddings.mask_token", "classifier", "decoder")  # what other heads have
