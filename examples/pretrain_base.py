"""Pretrain the small decoder that comes with the package: Llama-shaped, with biases, on the text of the training split.

    python examples/pretrain_base.py [steps]

Writes minipeft/data/base: config.json, model.safetensors (float16) and tokenizer.json, and prints the loss on held-out text.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tokenizers

from minipeft import Arch, Model, attach, fit
from minipeft.adapted import Adapted
from minipeft.checkpoints import family_names, load, save_model
from minipeft.checkpoints.files import write_bytes
from minipeft.data import BASE, corpus, held_out_text
from minipeft.merging import merge
from minipeft.model.batch import batch
from minipeft.model.parts import shapes
from minipeft.train import AdamW, progress_bar

VOCAB, WIDTH, TIME, ROWS = 2048, 128, 64, 32
CONFIG = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=352, vocab_size=VOCAB, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
    attention_bias=True, mlp_bias=True, tie_word_embeddings=True, max_position_embeddings=512, pad_token_id=0, bos_token_id=1,
    eos_token_id=1, torch_dtype="float16",
)  # fmt: skip


def train_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE with a beginning token in front of every text."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.train_from_iterator(texts, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def fresh_model(seed: int = 0) -> Model:
    """Random weights: N(0, 1/in), output projections smaller, norms 1, biases 0."""
    from minipeft.checkpoints import read_arch

    arch: Arch = read_arch(CONFIG)
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes(arch).items():
        if ".norm." in name:
            W = np.ones(shape)
        elif name.endswith(".bias"):
            W = np.zeros(shape)
        elif name.startswith("embed"):
            W = 0.05 * rng.standard_normal(shape)
        else:
            smaller = (2 * arch.layers) ** -0.5 if name.endswith(("attn.o.weight", "mlp.down.weight")) else 1.0
            W = smaller * shape[1] ** -0.5 * rng.standard_normal(shape)
        params[name] = W.astype(np.float32)
    return Model(arch, params, family_names(arch))


def stream(tokenizer: tokenizers.Tokenizer, texts: list[str], seed: int) -> np.ndarray:
    """All texts in random order as one row of ids."""
    order = np.random.default_rng(seed).permutation(len(texts))
    return np.concatenate([e.ids for e in tokenizer.encode_batch([texts[i] for i in order])])


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2500
    texts = corpus()
    tokenizer = train_tokenizer(texts)
    epochs: dict[int, np.ndarray] = {}
    per_step = ROWS * TIME

    def batches(t: int) -> list:
        length = len(stream(tokenizer, texts, 0)) if not epochs else len(epochs[min(epochs)])
        per_epoch = length // per_step
        epoch, i = divmod(t - 1, per_epoch)
        if epoch not in epochs:
            epochs.clear()
            epochs[epoch] = stream(tokenizer, texts, epoch)
        ids = epochs[epoch][i * per_step : (i + 1) * per_step].reshape(ROWS, TIME)
        return [batch(input_ids=ids, labels=ids)]

    start = attach(fresh_model(), "full")
    bar, update = progress_bar("pretraining")
    with bar:
        optimiser = AdamW(lr=2e-3, beta2=0.98, weight_decay=0.1)
        done = fit(
            start, batches, steps=steps, optimiser=optimiser, schedule="cosine", warmup=100, clip=1.0, progress=update
        )
    model = merge(done.adapted)
    save_model(model, BASE, CONFIG, dtype="float16")
    write_bytes(BASE / "tokenizer.json", json.dumps(json.loads(tokenizer.to_str()), separators=(",", ":")).encode())
    ids = stream(tokenizer, held_out_text(), 0)
    ids = ids[: len(ids) // TIME * TIME].reshape(-1, TIME)[:256]
    loss = float(Adapted(load(BASE)).loss(None, batch(input_ids=ids, labels=ids)))
    print(
        f"{model.size:,} parameters; loss {done.losses[-1]:.3f} on the last batch, {loss:.3f} nats a token on held-out text"
    )


if __name__ == "__main__":
    main()
