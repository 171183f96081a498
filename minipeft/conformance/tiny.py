"""Tiny random models of every family, and batches for them: what the laws are run on.

Sizes are distinct where the family allows, weights are jittered so that no norm is 1, no bias 0 and no attention flat.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from minipeft.checkpoints import family_names
from minipeft.engine.backend import to_device
from minipeft.errors import Bad, near
from minipeft.model.arch import Arch
from minipeft.model.base import Model, converted
from minipeft.model.batch import Batch, batch
from minipeft.model.parts import PATCHES, shapes

ARCHS = {
    "llama": Arch(
        "llama", d=24, layers=2, heads=6, kv_heads=3, ff=40, vocab=50, norm="rms", act="silu", gated=True,
        positions="rope", eos_ids=(1,), pad_id=0,
    ),
    "gpt2": Arch(
        "gpt2", d=24, layers=2, heads=3, ff=96, vocab=50, fused_qkv=True, max_positions=40, tied=True, eos_ids=(1,), pad_id=0,
        biased=("qkv", "o", "up", "down"),
    ),
    "bert": Arch(
        "bert", d=24, layers=2, heads=3, ff=40, vocab=50, pre_norm=False, causal=False, act="gelu", max_positions=40,
        head="classify", pool="first", labels=5, eps=1e-12, pad_id=0, types=2, biased=("q", "k", "v", "o", "up", "down", "score"),
    ),
    "t5": Arch(
        "t5", d=24, layers=2, encoder_layers=2, heads=3, ff=40, vocab=50, norm="rms", act="gelu_tanh", gated=True, positions="relative",
        buckets=8, max_distance=16, scale=1.0, tied=True, head_scale=24**-0.5, eos_ids=(1,), pad_id=0, start_id=0, eps=1e-6,
    ),
    "vit": Arch(
        "vit", d=24, layers=2, heads=3, ff=40, causal=False, act="gelu", patch=4, image=12, channels=3, head="classify",
        pool="first", labels=5, eps=1e-12, biased=("q", "k", "v", "o", "up", "down", "embed.patch", "score"),
    ),
}  # fmt: skip


def arch(family: str) -> Arch:
    """The tiny architecture of a family. Raises `Bad` for an unknown one."""
    if family not in ARCHS:
        raise Bad(f"family {family!r}: expected one of {', '.join(ARCHS)}{near(family, ARCHS)}")
    return ARCHS[family]


def model(family: str = "llama", dtype: Any = np.float64, seed: int = 0, layers: int = 2) -> Model:
    """A random model of a family, in a type as `Model.astype` has it. Raises `Bad` for an unknown family."""
    made = arch(family)
    made = dataclasses.replace(made, layers=layers, encoder_layers=layers if made.encoder_layers else 0)
    rng = np.random.default_rng([seed, *family.encode()])
    params = {}
    for name, shape in shapes(made).items():
        if ".norm.weight" in name:
            W = 1 + 0.1 * rng.standard_normal(shape)
        elif name.endswith(".bias"):
            W = 0.1 * rng.standard_normal(shape)
        elif name.startswith("embed.") and name != PATCHES:
            W = 0.5 * rng.standard_normal(shape)
        else:
            W = rng.standard_normal(shape) * (shape[-1] ** -0.5)
        params[name] = converted(name, to_device(W), dtype)
    return Model(made, params, family_names(made))


def example(model: Model, rows: int = 3, t: int = 7, seed: int = 1, padding: str = "right", tasks: int = 2) -> Batch:
    """A batch that fits the model: padded ("none", "right" or "left"), with labels and task ids."""
    arch = model.arch
    rng = np.random.default_rng(seed)
    task_ids = rng.integers(0, tasks, rows)
    if arch.patch:
        pixels = rng.standard_normal((rows, arch.channels, arch.image, arch.image)).astype(model.dtype)
        labels = rng.integers(0, arch.labels, rows) if arch.labels else None
        return batch(pixel_values=pixels, labels=labels, task_ids=task_ids)
    ids = rng.integers(2, arch.vocab, (rows, t))
    mask = np.ones((rows, t), int)
    if padding != "none":
        for row, short in enumerate(range(1, rows)):
            mask[row, t - short :] = 0
        mask = mask[:, ::-1] if padding == "left" else mask
    ids = np.where(mask == 1, ids, arch.pad_id or 0)
    if arch.head == "classify":
        labels = rng.integers(0, arch.labels, rows)
    elif arch.encoder_layers:
        labels = rng.integers(2, arch.vocab, (rows, t - 2))
        labels[0, -1] = -100
    else:
        labels = np.where(mask == 1, ids, -100)
    return batch(input_ids=ids, attention_mask=mask.copy(), labels=labels, task_ids=task_ids)
