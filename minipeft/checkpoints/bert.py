"""BERT, and RoBERTa as a row: other names, positions counted from the padding id + 1, another classifier.

Source: the checkpoints' config.json; Devlin et al. 2018, https://arxiv.org/abs/1810.04805; Liu et al. 2019,
https://arxiv.org/abs/1907.11692.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minipeft.checkpoints.config import FLAG, LAYERS, POSITIVE, TEXT, TOKEN, WHOLE, Fields, activation, divides
from minipeft.errors import Bad
from minipeft.model.arch import Arch

_BERT = Fields(
    read=dict(
        hidden_size=WHOLE,
        num_hidden_layers=LAYERS,
        num_attention_heads=WHOLE,
        intermediate_size=WHOLE,
        vocab_size=WHOLE,
        max_position_embeddings=WHOLE,
        type_vocab_size=WHOLE.or_(2),
        layer_norm_eps=POSITIVE.or_(1e-12),
        hidden_act=TEXT.or_("gelu"),
        is_decoder=FLAG.or_(False),
        tie_word_embeddings=FLAG.or_(True),
    ),
    only=dict(position_embedding_type=("absolute",)),
    idle={
        "dropout": "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout",
        "of a pooler that transformers never had": """
            directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type""",
    },
)
FIELDS = {
    "bert": replace(_BERT, read=_BERT.read | dict(pad_token_id=TOKEN.or_(0, null=True))),
    "roberta": replace(_BERT, read=_BERT.read | dict(pad_token_id=TOKEN.or_(1))),
}


def arch(config: dict[str, Any], head: str) -> Arch:
    """The facts of config.json."""
    divides(config, "num_attention_heads", "hidden_size")
    roberta = config["model_type"] == "roberta"
    pad = config["pad_token_id"]
    if roberta and not 0 <= pad < config["vocab_size"]:
        raise Bad(f"config.json: pad_token_id: RoBERTa counts positions from it; expected a token, found {pad}")
    return Arch(
        family=config["model_type"],
        d=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ff=config["intermediate_size"],
        vocab=config["vocab_size"],
        types=config["type_vocab_size"],
        eps=config["layer_norm_eps"],
        pre_norm=False,
        causal=config["is_decoder"],
        act=activation(config["hidden_act"]),
        max_positions=config["max_position_embeddings"],
        first_position=pad + 1 if roberta else 0,
        tied=config["tie_word_embeddings"],
        transform="gelu" if roberta else activation(config["hidden_act"]),  # transformers: RoBERTa's is always GELU
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
        **({"head.bias": f"{head}.bias"} if arch.tied else {}),  # untied, the decoder has one of its own
        "head": f"{head}.decoder",
    }
    if roberta and arch.head == "classify":
        names |= {"score.dense": "classifier.dense", "score": "classifier.out_proj"}
    else:
        names |= {"pooler": f"{top}.pooler.dense", "score": "classifier"}
    return names, ()


PREFIX = {"bert": "bert.", "roberta": "roberta."}
UNREAD = ("bert.pooler", "roberta.pooler", "cls.seq_relationship", "cls.predictions.bias", "lm_head.bias")
# what changes no output here where it is no parameter: a pooler without its classifier, an untied head's second bias
SPARE = ("cls", "lm_head", "classifier", "qa_outputs", "bert.pooler", "roberta.pooler")  # what other heads have
