"""T5, with the plain and the gated feed-forward. Source: config.json; Raffel et al. 2019, https://arxiv.org/abs/1910.10683."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minipeft.checkpoints.config import FLAG, POSITIVE, STACK, TEXT, TOKEN, WHOLE, Fields, activation
from minipeft.errors import Bad
from minipeft.model.arch import Arch

FIELDS = Fields(
    read=dict(
        d_model=WHOLE,
        d_kv=WHOLE,
        d_ff=WHOLE,
        num_layers=STACK,
        num_decoder_layers=STACK.or_(None),
        num_heads=WHOLE,
        vocab_size=WHOLE,
        layer_norm_epsilon=POSITIVE.or_(1e-6),
        feed_forward_proj=TEXT.or_("relu"),
        dense_act_fn=TEXT.or_(None),
        is_gated_act=FLAG.or_(None),
        relative_attention_num_buckets=WHOLE.or_(32),
        relative_attention_max_distance=WHOLE.or_(128),
        is_encoder_decoder=FLAG.or_(True),
        tie_word_embeddings=FLAG.or_(True),
        scale_decoder_outputs=replace(FLAG, default=None),
        pad_token_id=TOKEN.or_(0, null=True),
    ),
    idle={
        "dropout": "dropout_rate classifier_dropout",
        "its stacks are told apart by where they stand": "is_decoder",
        "of files older than feed_forward_proj, and of tables that grow": "n_positions hidden_size_per_head",
    },
    also=dict(hidden_size="d_model", num_attention_heads="num_heads", num_hidden_layers="num_layers", head_dim="d_kv"),
)


def feed_forward(config: dict[str, Any]) -> tuple[str, bool]:
    """The activation function and whether it gates, of `feed_forward_proj`: "relu", "gated-gelu", …"""
    kind = config["feed_forward_proj"]
    parts = kind.split("-")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
        raise Bad(f"config.json: feed_forward_proj: expected a function or gated- and a function, found {kind!r}")
    act = "gelu_new" if kind == "gated-gelu" else parts[-1]
    gated = config["is_gated_act"]
    return activation(config["dense_act_fn"] or act), parts[0] == "gated" if gated is None else gated


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json. The head is the token table unless the file has another; `tie_word_embeddings` says only

    whether the decoder's output is scaled, as transformers reads it.
    """
    if head not in ("lm", "none"):
        raise Bad(
            f"architectures: {config['architectures'][0]} is not supported; expected T5ForConditionalGeneration or T5Model"
        )
    if not config["is_encoder_decoder"]:
        raise Bad("config.json: is_encoder_decoder=False is not supported for t5: a stack alone")
    buckets = config["relative_attention_num_buckets"]
    if buckets < 4 or config["relative_attention_max_distance"] <= buckets // 2:
        raise Bad(
            f"config.json: relative_attention_num_buckets={buckets} with relative_attention_max_distance="
            f"{config['relative_attention_max_distance']}; expected at least 4, and more than half of it"
        )
    act, gated = feed_forward(config)
    scaled = config["scale_decoder_outputs"]
    return Arch(
        family="t5",
        d=config["d_model"],
        layers=config["num_decoder_layers"] or config["num_layers"],
        encoder_layers=config["num_layers"],
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        ff=config["d_ff"],
        vocab=config["vocab_size"],
        norm="rms",
        eps=config["layer_norm_epsilon"],
        act=act,
        gated=gated,
        positions="relative",
        buckets=buckets,
        max_distance=config["relative_attention_max_distance"],
        scale=1.0,
        tied=True,
        head_scale=config["d_model"] ** -0.5 if (config["tie_word_embeddings"] if scaled is None else scaled) else 1.0,
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


PREFIX: dict[str, str] = {}
SPARE = (
    "lm_head",
    "classification_head",
    "qa_outputs",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias",
)
# what other heads have, and a table that older files hold and nothing uses
WIDE = ("mlp.down",)  # transformers holds it in float32, so that bitsandbytes leaves it alone
