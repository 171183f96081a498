"""Small bases to put PEFT's adapters on, drawn: every family, head and size that a checkpoint may have; and batches for them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf

from minipeft.adapted import Adapted
from minipeft.checkpoints import load
from minipeft.model.batch import batch

VOCAB = 37
SOME = 24  # bases of a shape
TASKS = dict(
    llama="CAUSAL_LM", gpt2="CAUSAL_LM", bert="SEQ_CLS", t5="SEQ_2_SEQ_LM", vit=None, mistral="CAUSAL_LM", roberta="SEQ_CLS",
) | {
    "llama-cls": "SEQ_CLS", "gpt2-cls": "SEQ_CLS", "llama-tokens": "TOKEN_CLS", "gpt2-tokens": "TOKEN_CLS",
    "bert-tokens": "TOKEN_CLS", "roberta-tokens": "TOKEN_CLS", "bert-mlm": None,
}  # fmt: skip
SHAPES = tuple(TASKS)
CLASSES = dict(llama="Llama", mistral="Mistral", qwen2="Qwen2", gpt2="GPT2", bert="Bert", roberta="Roberta")
HEADS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "CAUSAL_LM": "ForCausalLM",
    None: "ForMaskedLM",
}


def family_of(shape: str) -> str:
    return shape.partition("-")[0]


def sizes(shape: str, rng: np.random.Generator) -> tuple[Any, Any]:
    """A class of transformers and its configuration."""
    one = lambda *of: of[rng.integers(len(of))]
    flag = lambda: bool(rng.integers(2))
    heads, per = one(1, 2, 3, 4, 5, 6), one(2, 4, 6)
    width, inner, layers = heads * per, one(7, 12, 16, 18, 20, 21, 24, 28, 36), one(1, 2, 3)
    common = dict(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False, num_labels=3)
    family, task = family_of(shape), TASKS[shape]
    if family in ("llama", "mistral"):
        groups = one(*(g for g in (1, 2, 3, 6) if heads % g == 0))
        own = dict(
            hidden_size=heads * one(per, per, per + 2, 3, 5), intermediate_size=inner, num_hidden_layers=layers, head_dim=per,
            num_attention_heads=heads, num_key_value_heads=heads // groups, max_position_embeddings=40,
            tie_word_embeddings=flag() and task == "CAUSAL_LM",
        )  # fmt: skip
        if family == "llama":
            own |= dict(attention_bias=flag(), mlp_bias=flag())
        elif flag():
            family = "qwen2"
            own |= dict(hidden_size=width)
            own.pop("head_dim")
        else:
            own |= dict(sliding_window=one(None, 3))
        name = CLASSES[family]
        return getattr(tf, name + HEADS[task]), getattr(tf, f"{name}Config")(**common, **own)
    if family == "gpt2":
        per = one(*(n for n in (1, 2, 3, 5) if heads * n > 2))
        cls = tf.GPT2LMHeadModel if task == "CAUSAL_LM" else getattr(tf, "GPT2" + HEADS[task])
        inner = one(inner, inner, None)
        return cls, tf.GPT2Config(
            **common, n_embd=heads * per, n_layer=layers, n_head=heads, n_inner=inner, n_positions=40
        )
    width = heads * one(*(n for n in (1, 2, 3, 5) if heads * n > 2))  # a norm of two is a sign
    own = dict(hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads)
    if family in ("bert", "roberta"):
        name = CLASSES[family]
        return getattr(tf, name + HEADS[task]), getattr(tf, f"{name}Config")(
            **common, **own, max_position_embeddings=40
        )
    if family == "vit":
        patch, channels = one(1, 2, 3, 4), one(1, 3, 4, 6)
        return tf.ViTForImageClassification, tf.ViTConfig(
            **own,
            image_size=patch * one(1, 2, 3),
            patch_size=patch,
            num_channels=channels,
            qkv_bias=flag(),
            num_labels=3,
        )
    return tf.T5ForConditionalGeneration, tf.T5Config(
        **common, d_model=width, d_kv=one(1, 2, 3, 5), num_heads=heads, d_ff=inner, num_layers=layers,
        num_decoder_layers=one(layers, layers, 1, 2), decoder_start_token_id=0, relative_attention_num_buckets=8,
        relative_attention_max_distance=12, tie_word_embeddings=flag(), feed_forward_proj=one("relu", "gated-gelu", "gated-silu"),
    )  # fmt: skip


def noise(named: Any, size: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(named, key=lambda item: item[0]):
            p.add_(size * torch.randn(p.shape, generator=rng).to(p.dtype))


tf.utils.logging.disable_progress_bar()
KEPT = tempfile.TemporaryDirectory(prefix="peft-fuzz-")


@cache
def base(shape: str, i: int) -> tuple[Any, Path]:
    """The i-th base of a shape, saved."""
    cls, config = sizes(shape, np.random.default_rng([i, SHAPES.index(shape)]))
    torch.manual_seed(i)
    model = cls(config)
    noise(model.named_parameters(), 0.2, i)
    folder = Path(KEPT.name) / f"{shape}{i}"
    model.save_pretrained(folder)
    return cls, folder


@cache
def ours(shape: str, i: int, dtype: Any = np.float64) -> Any:
    return load(base(shape, i)[1], dtype)


def theirs(shape: str, i: int, dtype: torch.dtype) -> Any:
    cls, folder = base(shape, i)
    model = cls.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model.config.use_cache = False
    model.name_or_path = model.config._name_or_path = ""
    return model.eval()


@cache
def modules_of(shape: str, i: int) -> dict[str, list[str]]:
    """Names of modules, by what they are."""
    out: dict[str, list[str]] = dict(linear=[], patches=[], table=[], norm=[], head=[], layer=[])
    for name, m in theirs(shape, i, torch.float32).named_modules():
        kind = type(m).__name__
        if name.rpartition(".")[2] in ("lm_head", "classifier", "score"):
            out["head"].append(name)
        elif name.rpartition(".")[2].isdecimal():
            out["layer"].append(name)
        elif kind in ("Linear", "Conv1D"):
            out["linear"].append(name)
        elif kind == "Conv2d":
            out["patches"].append(name)
        elif kind == "Embedding":
            out["table"].append(name)
        elif "Norm" in kind:
            out["norm"].append(name)
    return out


def given(shape: str, i: int, tasks: bool, padding: str = "none") -> dict[str, np.ndarray]:
    """A batch of two, and its labels; `padding` is none, left or right."""
    rng = np.random.default_rng(3)
    if shape == "vit":
        arch = ours(shape, i).arch
        pixels = rng.standard_normal((2, arch.channels, arch.image, arch.image))
        return dict(pixel_values=pixels, labels=np.array([2, 1]))
    ids = rng.integers(3, VOCAB, (2, 6))
    mask = np.ones_like(ids)
    mask[0, dict(none=slice(0), left=slice(2), right=slice(4, 6))[padding]] = 0
    out = dict(input_ids=ids * mask, attention_mask=mask)
    if shape == "t5":
        out["labels"] = ids[:, :4]
    elif TASKS[shape] == "SEQ_CLS":
        out["labels"] = np.array([2, 0])
    elif TASKS[shape] == "TOKEN_CLS":
        out["labels"] = np.where(mask, ids % 3, -100)
    else:  # what padding on the left predicts sees no token, and torch's gradient there is not that of what it computes
        out["labels"] = np.where(mask, ids, -100)
        out["labels"][:, 1:][mask[:, :-1] == 0] = -100
    return out | (dict(task_ids=np.array([1, 0])) if tasks else {})


@cache
def plain(shape: str, i: int, padding: str = "none") -> np.ndarray:
    """What the base computes."""
    return Adapted(ours(shape, i)).logits(batch(**given(shape, i, False, padding)))
