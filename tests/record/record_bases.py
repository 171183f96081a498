"""Records what transformers computes with a tiny checkpoint of every family: `python tests/record/record_bases.py [NAME ...]`.

Writes tests/data/bases/<name>/: the checkpoint as transformers saves it, and expected.safetensors with groups of inputs and
results, "none/logits", "right/grad::embeds", "left/generated", …, named after where the padding is. All results are in
float64, from the checkpoint read back. Running it again gives the same bytes.
"""

from __future__ import annotations

import json
import os
import re
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
from safetensors.torch import load_file, save_file  # noqa: E402

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
    edit: Any = None  # what is done to the tensors of the file, by name
    reads: Any = None  # the class that computes with the file, where it is another than made it
    wrapped: str = ""  # put before the names at last: transformers itself does not read such a file
    generation: dict[str, Any] | None = None  # what generation_config.json says beside; None: there is none

    @property
    def reader(self) -> Any:
        return self.reads or self.cls

    def write(self, made: Any, folder: Path) -> None:
        """The checkpoint, as it is to be found."""
        made.to(self.dtype).save_pretrained(folder, **self.save)
        place = folder / "generation_config.json"
        place.unlink(missing_ok=True)
        if self.generation is not None:
            place.write_text(json.dumps(self.generation))
        if self.edit is not None:
            edited(folder, self.edit)

    def wrap(self, folder: Path) -> None:
        """The last step, after transformers has read it."""
        if self.wrapped:
            edited(folder, renamed(("^", self.wrapped)))


def edited(folder: Path, edit: Any) -> None:
    tensors = edit(load_file(folder / "model.safetensors"))
    save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, folder / "model.safetensors", {"format": "pt"})


def renamed(*pairs: tuple[str, str]) -> Any:
    """An edit that replaces parts of names by regular expressions."""

    def edit(tensors: Tensors) -> Tensors:
        for pattern, by in pairs:
            tensors = {re.sub(pattern, by, k): v for k, v in tensors.items()}
        return tensors

    return edit


def with_more(**more: tuple[int, ...]) -> Any:
    """An edit that adds tensors of these shapes, which nothing should read; __ stands for a dot."""
    return lambda tensors: tensors | {k.replace("__", "."): torch.full(shape, 0.5) for k, shape in more.items()}


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
        "qwen2-windows": Base(tf.Qwen2ForCausalLM, tf.Qwen2Config(**llama | dict(
            use_sliding_window=True, sliding_window=3, max_window_layers=1, num_hidden_layers=3, hidden_act="gelu_pytorch_tanh"))),
        "qwen2-types": Base(tf.Qwen2ForCausalLM, tf.Qwen2Config(**llama | dict(
            use_sliding_window=True, sliding_window=4, layer_types=["sliding_attention", "full_attention"], hidden_act="swish"))),
        "llama-ends": Base(tf.LlamaForCausalLM, tf.LlamaConfig(**llama | dict(eos_token_id=[7, 9], hidden_act="mish")),
            wrapped="_orig_mod.module.", generation=dict(eos_token_id=list(range(10, VOCAB)), pad_token_id=3)),
        "llama-reward": Base(tf.LlamaForSequenceClassification, tf.LlamaConfig(**llama, num_labels=1),
            edit=with_more(lm_head__weight=(VOCAB, 24))),
        "gpt2-plain": Base(tf.GPT2LMHeadModel, tf.GPT2Config(**gpt2 | dict(eos_token_id=[]), scale_attn_weights=False, activation_function="quick_gelu")),
        "bert-decoder": Base(tf.BertLMHeadModel, tf.BertConfig(**bert, is_decoder=True, hidden_act="gelu_fast")),
        "bert-decoder-cls": Base(tf.BertForSequenceClassification, tf.BertConfig(
            **bert, is_decoder=True, num_labels=3, problem_type="multi_label_classification")),
        "bert-pretraining": Base(tf.BertForPreTraining, tf.BertConfig(**bert, hidden_act="relu"), reads=tf.BertForMaskedLM,
            edit=renamed((r"LayerNorm\.weight", "LayerNorm.gamma"), (r"LayerNorm\.bias", "LayerNorm.beta"))),
        "bert-mlm-untied": Base(tf.BertForMaskedLM, tf.BertConfig(**bert, tie_word_embeddings=False)),
        "roberta-lm": Base(tf.RobertaForCausalLM, tf.RobertaConfig(
            **roberta, is_decoder=True, tie_word_embeddings=False, hidden_act="relu")),
        "t5-old": Base(tf.T5ForConditionalGeneration, tf.T5Config(**t5, feed_forward_proj="gated-silu"), edit=with_more(
            decoder__block__0__layer__1__EncDecAttention__relative_attention_bias__weight=(8, 4))),
        "vit-5": Base(tf.ViTModel, tf.ViTConfig(**vit | dict(image_size=[10, 10]), hidden_act="quick_gelu", qkv_bias=False), edit=renamed(
            (r"encoder\.layer\.", "layers."), (r"attention\.attention\.(\w)\w+", r"attention.\1_proj"),
            (r"attention\.output\.dense", "attention.o_proj"), (r"intermediate\.dense", "mlp.fc1"), (r"output\.dense", "mlp.fc2"))),
    }  # fmt: skip


def inputs(cls: Any, config: Any, padding: str, rng: torch.Generator, rows: int = 3, t: int = 8) -> Tensors:
    """A batch that fits the model, with labels or, without a head, weights of the output; `padding` is left, right or none."""

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=rng)

    if hasattr(config, "image_size"):
        side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        pixels = torch.randn(rows, 3, side, side, generator=rng, dtype=torch.float64)
        if not cls.__name__.endswith("Classification"):
            return dict(
                pixel_values=pixels,
                weights=torch.randn(rows, 5, config.hidden_size, generator=rng, dtype=torch.float64),
            )
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
        if config.num_labels == 1:
            labels = torch.randn(rows, generator=rng, dtype=torch.float64)
        elif config.problem_type == "multi_label_classification":
            labels = draw(0, 2, rows, config.num_labels).double()
    elif cls.__name__.endswith("TokenClassification"):
        labels = draw(0, config.num_labels, rows, t).masked_fill(mask == 0, -100)
    elif config.is_encoder_decoder:
        labels = draw(3, config.vocab_size, rows, t - 2)
        labels[0, 4:] = -100
    else:
        labels = ids.masked_fill(mask == 0, -100)
        labels[0, 3] = -100
        if generates(cls):  # what padding on the left predicts: it sees no token, see `paddings`
            labels[:, 1:] = labels[:, 1:].masked_fill(mask[:, :-1] == 0, -100)
    return out | dict(labels=labels)


def paddings(cls: Any, config: Any) -> tuple[str, ...]:
    """Where padding may be. A token that sees none attends to all alike, whatever its scores; torch has a gradient for them
    all the same, so that no loss may count it: on the left that would be the first token, which BERT's classifier reads."""
    if hasattr(config, "image_size"):
        return ("none",)
    blind = getattr(config, "is_decoder", False) and cls.__name__.startswith("Bert") and "Sequence" in cls.__name__
    return ("none", "right") if blind else ("none", "right", "left")


def generates(cls: Any) -> bool:
    return cls.__name__.endswith(("CausalLM", "HeadModel", "Generation"))


def record(name: str, base: Base) -> None:
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    torch.manual_seed(0)
    made = base.cls(base.config)
    jitter(made, rng)
    base.write(made, folder)
    expected: Tensors = {}
    with as_float64():
        model = base.reader.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
        base.wrap(folder)
        model.config.use_cache = False  # its cache has the encoder's number of layers, also for a deeper decoder
        for padding in paddings(base.cls, base.config):
            given = inputs(base.reader, base.config, padding, rng)
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
