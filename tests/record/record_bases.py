"""Records what transformers computes with a tiny checkpoint of every family: `python tests/record/record_bases.py [NAME ...]`.

Writes tests/data/bases/<name>/: the checkpoint as transformers saves it, and expected.safetensors with groups of inputs and
results, "none/logits", "right/grad::embeds", "left/generated", …, named after where the padding is. All results are in
float64, from the checkpoint read back. Running it again gives the same bytes.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers as tf  # noqa: E402
from float64 import as_float64, expect, jitter  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

torch.set_num_threads(1)
tf.logging.disable_progress_bar()
ROOT = Path(__file__).parents[1] / "data" / "bases"
VOCAB = 43
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Base:
    """One checkpoint: the class that computes it, its configuration, and how it is stored."""

    cls: Any
    config: Any
    dtype: torch.dtype = torch.float32
    save: dict[str, Any] = field(default_factory=dict)  # options of save_pretrained


def bases() -> dict[str, Base]:
    """Sizes differ from one another wherever the architecture lets them."""
    common = dict(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    llama = common | dict(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    gpt2 = common | dict(n_embd=20, n_layer=2, n_head=4, n_inner=28, n_positions=24)
    bert = common | dict(
        hidden_size=20,
        intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
    )
    roberta = bert | dict(pad_token_id=1, bos_token_id=0, type_vocab_size=1)
    t5 = common | dict(
        d_model=16,
        d_kv=5,
        num_heads=4,
        d_ff=22,
        num_layers=2,
        num_decoder_layers=3,
        decoder_start_token_id=0,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=6,
    )
    llama3 = dict(
        rope_type="llama3",
        rope_theta=500.0,
        factor=4.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
    )
    linear = dict(rope_type="linear", rope_theta=10000.0, factor=2.5)
    half, brain = torch.float16, torch.bfloat16
    vit = dict(
        hidden_size=20, num_hidden_layers=2, num_attention_heads=4, intermediate_size=28, image_size=8, patch_size=4
    )
    return {
        "gpt2": Base(tf.GPT2LMHeadModel, tf.GPT2Config(**gpt2)),
        "llama": Base(tf.LlamaForCausalLM, tf.LlamaConfig(**llama), save=dict(max_shard_size="12KB")),
        "llama-llama3": Base(tf.LlamaForCausalLM, tf.LlamaConfig(**llama, rope_parameters=llama3, attention_bias=True, mlp_bias=True), brain),
        "llama-linear": Base(tf.LlamaForCausalLM, tf.LlamaConfig(**llama | dict(rope_parameters=linear, tie_word_embeddings=True))),
        "llama-cls": Base(tf.LlamaForSequenceClassification, tf.LlamaConfig(**llama, num_labels=4)),
        "mistral": Base(tf.MistralForCausalLM, tf.MistralConfig(**llama, head_dim=6, sliding_window=4), half),
        "qwen2": Base(tf.Qwen2ForCausalLM, tf.Qwen2Config(**llama), brain),
        "bert-cls": Base(tf.BertForSequenceClassification, tf.BertConfig(**bert, num_labels=4)),
        "bert-tokens": Base(tf.BertForTokenClassification, tf.BertConfig(**bert, num_labels=4)),
        "bert-mlm": Base(tf.BertForMaskedLM, tf.BertConfig(**bert), half),
        "bert": Base(tf.BertModel, tf.BertConfig(**bert)),
        "roberta-cls": Base(tf.RobertaForSequenceClassification, tf.RobertaConfig(**roberta, num_labels=4)),
        "roberta-mlm": Base(tf.RobertaForMaskedLM, tf.RobertaConfig(**roberta)),
        "t5": Base(tf.T5ForConditionalGeneration, tf.T5Config(**t5)),
        "t5-gated": Base(tf.T5ForConditionalGeneration, tf.T5Config(**t5, feed_forward_proj="gated-gelu", tie_word_embeddings=False), brain),
        "vit": Base(tf.ViTForImageClassification, tf.ViTConfig(**vit, num_labels=4)),
    }  # fmt: skip


def inputs(cls: Any, config: Any, padding: str, rng: torch.Generator, rows: int = 3, t: int = 8) -> Tensors:
    """A batch that fits the model, with labels or, without a head, weights of the output; `padding` is left, right or none."""

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=rng)

    if hasattr(config, "image_size"):
        pixels = torch.randn(rows, 3, config.image_size, config.image_size, generator=rng, dtype=torch.float64)
        return dict(pixel_values=pixels, labels=draw(0, config.num_labels, rows))
    mask = torch.ones(rows, t, dtype=torch.int64)
    for row in range(1, rows) if padding != "none" else ():
        short = 1 + 2 * (row - 1)
        mask[row, slice(0, short) if padding == "left" else slice(t - short, t)] = 0
    ids = draw(3, config.vocab_size, rows, t)
    out = dict(input_ids=ids.masked_fill(mask == 0, config.pad_token_id), attention_mask=mask)
    if getattr(config, "type_vocab_size", 0) > 1:
        out["token_type_ids"] = (torch.arange(t)[None] >= t // 2) * mask
    if not cls.__name__.endswith(("LM", "HeadModel", "Generation", "Classification")):
        return out | dict(
            weights=torch.randn(rows, t, config.hidden_size, generator=rng, dtype=torch.float64) * mask[:, :, None]
        )
    if cls.__name__.endswith("SequenceClassification"):
        labels = draw(0, config.num_labels, rows)
    elif cls.__name__.endswith("TokenClassification"):
        labels = draw(0, config.num_labels, rows, t).masked_fill(mask == 0, -100)
    elif config.is_encoder_decoder:
        labels = draw(3, config.vocab_size, rows, t - 2)
        labels[0, 4:] = -100
    else:
        labels = ids.masked_fill(mask == 0, -100)
        labels[0, 3] = -100
        # what padding on the left predicts: it sees no token, and torch's gradient there is not that of what it computes
        labels[:, 1:] = labels[:, 1:].masked_fill(mask[:, :-1] == 0, -100)
    return out | dict(labels=labels)


def generates(cls: Any) -> bool:
    return cls.__name__.endswith(("CausalLM", "HeadModel", "Generation"))


def record(name: str, base: Base) -> None:
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    torch.manual_seed(0)
    made = base.cls(base.config)
    jitter(made, rng)
    made.to(base.dtype).save_pretrained(folder, **base.save)
    (folder / "generation_config.json").unlink(missing_ok=True)
    expected: Tensors = {}
    with as_float64():
        model = base.cls.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
        model.config.use_cache = False  # its cache has the encoder's number of layers, also for a deeper decoder
        for padding in ("none",) if hasattr(base.config, "image_size") else ("none", "right", "left"):
            given = inputs(base.cls, base.config, padding, rng)
            found = given | expect(model, given)
            if generates(base.cls) and (padding != "right" or base.config.is_encoder_decoder):
                asked = {k: given[k] for k in ("input_ids", "attention_mask")}
                made = model.generate(**asked, max_new_tokens=8, do_sample=False, use_cache=False)
                found["generated"] = made[
                    :, 1 if base.config.is_encoder_decoder else given["input_ids"].shape[1] :
                ].contiguous()
            expected |= {f"{padding}/{k}": v for k, v in found.items()}
    save_file(expected, folder / "expected.safetensors")


def main(wanted: list[str]) -> None:
    if not wanted:
        shutil.rmtree(ROOT, ignore_errors=True)
    for name, base in bases().items():
        if not wanted or name in wanted:
            record(name, base)


if __name__ == "__main__":
    main(sys.argv[1:])
