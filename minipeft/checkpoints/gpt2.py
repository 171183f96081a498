"""GPT-2. Source: the checkpoints' config.json; Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

Its linears are stored as (in, out) and turned round at load.
"""

from __future__ import annotations

from typing import Any

from minipeft.checkpoints.config import COUNT, FLAG, LAYERS, POSITIVE, TEXT, WHOLE, Fields, activation, divides
from minipeft.model.arch import Arch

FIELDS = Fields(
    read=dict(
        n_embd=WHOLE,
        n_layer=LAYERS,
        n_head=WHOLE,
        n_inner=COUNT.or_(None),
        n_positions=WHOLE.or_(1024),
        vocab_size=WHOLE,
        layer_norm_epsilon=POSITIVE.or_(1e-5),
        activation_function=TEXT.or_("gelu_new"),
        scale_attn_weights=FLAG.or_(True),
        tie_word_embeddings=FLAG.or_(True),
    ),
    only=dict(scale_attn_by_inverse_layer_idx=(False,)),
    idle={
        "dropout": "resid_pdrop embd_pdrop attn_pdrop summary_first_dropout classifier_dropout hidden_dropout",
        "of the double head": "summary_type summary_use_proj summary_activation summary_proj_to_labels",
        "another order of the same products": "reorder_and_upcast_attn",
        "an older name of n_positions": "n_ctx",
        "nothing looks at it": "is_decoder",
    },
    also=dict(
        hidden_size="n_embd",
        max_position_embeddings="n_positions",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
    ),
)


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json."""
    divides(config, "n_head", "n_embd")
    return Arch(
        family="gpt2",
        d=config["n_embd"],
        layers=config["n_layer"],
        heads=config["n_head"],
        ff=config["n_inner"] or 4 * config["n_embd"],
        vocab=config["vocab_size"],
        eps=config["layer_norm_epsilon"],
        act=activation(config["activation_function"]),
        fused_qkv=True,
        scale=None if config["scale_attn_weights"] else 1.0,
        max_positions=config["n_positions"],
        tied=config["tie_word_embeddings"],
        biased=("qkv", "o", "up", "down"),
    )


def table(arch: Arch) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our module names and theirs, and those stored (in, out)."""
    linears = {"attn.qkv": "attn.c_attn", "attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    names = {
        "embed.tokens": "transformer.wte",
        "embed.positions": "transformer.wpe",
        **{f"layers.{{n}}.{ours}": f"transformer.h.{{n}}.{theirs}" for ours, theirs in linears.items()},
        "layers.{n}.attn.norm": "transformer.h.{n}.ln_1",
        "layers.{n}.mlp.norm": "transformer.h.{n}.ln_2",
        "final.norm": "transformer.ln_f",
        "head": "lm_head",
        "score": "classifier" if arch.head == "tokens" else "score",
    }
    return names, tuple(f"layers.{{n}}.{ours}" for ours in linears)


PREFIX = {"gpt2": "transformer."}
SPARE = ("lm_head", "score", "classifier", "multiple_choice_head", "qa_outputs")  # what other heads have
