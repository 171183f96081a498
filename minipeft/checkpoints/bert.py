"""BERT, and RoBERTa as a row: other names, positions counted from the padding id + 1, another classifier.

Source: the checkpoints' config.json; Devlin et al. 2018, https://arxiv.org/abs/1810.04805; Liu et al. 2019,
https://arxiv.org/abs/1907.11692.
"""

from __future__ import annotations

from typing import Any

from minipeft.checkpoints.gpt2 import activation
from minipeft.errors import Bad
from minipeft.model.arch import Arch


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json."""
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise Bad(f"config.json: position_embedding_type={config['position_embedding_type']!r} is not supported")
    roberta = config["model_type"] == "roberta"
    return Arch(
        family=config["model_type"],
        d=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ff=config["intermediate_size"],
        vocab=config["vocab_size"],
        types=config.get("type_vocab_size", 2),
        eps=config.get("layer_norm_eps", 1e-12),
        pre_norm=False,
        causal=False,
        act=activation(config.get("hidden_act", "gelu")),
        max_positions=config["max_position_embeddings"],
        first_position=config["pad_token_id"] + 1 if roberta else 0,
        tied=config.get("tie_word_embeddings", True),
        pool="first",
        biased=("q", "k", "v", "o", "up", "down", "head"),
    )


def table(arch: Arch) -> tuple[dict[str, str], tuple[str, ...]]:
    """Our module names and theirs."""
    roberta = arch.family == "roberta"
    top = "roberta" if roberta else "bert"
    layer = f"{top}.encoder.layer.{{n}}."
    head = "lm_head" if roberta else "cls.predictions"
    names = {
        "embed.tokens": f"{top}.embeddings.word_embeddings",
        "embed.positions": f"{top}.embeddings.position_embeddings",
        "embed.types": f"{top}.embeddings.token_type_embeddings",
        "embed.norm": f"{top}.embeddings.LayerNorm",
        **{
            f"layers.{{n}}.attn.{m}": f"{layer}attention.self.{theirs}"
            for m, theirs in {"q": "query", "k": "key", "v": "value"}.items()
        },
        "layers.{n}.attn.o": f"{layer}attention.output.dense",
        "layers.{n}.attn.norm": f"{layer}attention.output.LayerNorm",
        "layers.{n}.mlp.up": f"{layer}intermediate.dense",
        "layers.{n}.mlp.down": f"{layer}output.dense",
        "layers.{n}.mlp.norm": f"{layer}output.LayerNorm",
        "head.transform": f"{head}.dense" if roberta else f"{head}.transform.dense",
        "head.norm": f"{head}.layer_norm" if roberta else f"{head}.transform.LayerNorm",
        "head.bias": f"{head}.bias",
        "head": f"{head}.decoder",
    }
    if roberta and arch.head == "classify":
        names |= {"score.dense": "classifier.dense", "score": "classifier.out_proj"}
    else:
        names |= {"pooler": f"{top}.pooler.dense", "score": "classifier"}
    return names, ()


PREFIX = {"bert": "bert.", "roberta": "roberta."}
