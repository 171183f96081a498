"""GPT-2. Source: the checkpoints' config.json; Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

Its linears are stored as (in, out) and turned round at load.
"""

from __future__ import annotations

from typing import Any

from minipeft.errors import Bad
from minipeft.model.arch import Arch

ACTS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "tanh": "tanh",
}


def activation(name: str) -> str:
    """Our name of an activation function. Raises `Bad` for one we do not have."""
    if name not in ACTS:
        raise Bad(f"activation {name!r} is not supported; expected one of {', '.join(ACTS)}")
    return ACTS[name]


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json."""
    for option, expected in {"scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True}.items():
        if config.get(option, expected) != expected:
            raise Bad(f"config.json: {option}={config[option]} is not supported")
    return Arch(
        family="gpt2",
        d=config["n_embd"],
        layers=config["n_layer"],
        heads=config["n_head"],
        ff=config.get("n_inner") or 4 * config["n_embd"],
        vocab=config["vocab_size"],
        eps=config.get("layer_norm_epsilon", 1e-5),
        act=activation(config.get("activation_function", "gelu_new")),
        fused_qkv=True,
        max_positions=config["n_positions"],
        tied=config.get("tie_word_embeddings", True),
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
