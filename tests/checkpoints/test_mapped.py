"""A base that is mapped into memory is the base that is read."""

import itertools
import json
import os
import struct
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from sampled import one_each

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load, mapped
from minipeft.checkpoints.merged import save_merged
from minipeft.conformance import tiny
from minipeft.engine.mapped import Mapped
from minipeft.engine.weight import form, widened
from minipeft.errors import Bad

BASES = sorted(p.parent for p in (Path(__file__).parents[1] / "data" / "bases").glob("*/config.json"))

LLAMA = next(p for p in BASES if p.name.startswith("llama") and (p / "model.safetensors").exists())


@pytest.fixture
def everything(monkeypatch):
    """Every file is large enough."""
    monkeypatch.setattr(mapped, "READ_AT_ONCE", 0)


@pytest.mark.parametrize(
    ("folder", "dtype"),
    one_each(itertools.product(BASES, [None, np.float64, "bfloat16", "nf4"]), itemgetter(0)),
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_it_equals_the_base_that_is_read(folder, dtype, monkeypatch):
    try:
        read = load(folder, dtype)
    except Bad:
        pytest.skip("this base cannot be held so")  # which its own tests say
    monkeypatch.setattr(mapped, "READ_AT_ONCE", 0)
    model = load(folder, dtype)
    assert any(isinstance(W, Mapped) for W in model.params.values()) and model.dtype == read.dtype
    assert list(model.params) == list(read.params) and model.forms == read.forms
    assert model.digest() == read.digest() and model.size == read.size and repr(model) == repr(read)
    for name, W in model.params.items():
        np.testing.assert_array_equal(widened(W), widened(read.params[name]), err_msg=name)
        assert form(W) or not widened(W).flags.writeable
    assert set(model.spare) == set(read.spare)
    if model.arch.head == "lm":
        batch = tiny.example(model)
        np.testing.assert_array_equal(Adapted(model).logits(batch), Adapted(read).logits(batch))


def test_it_is_trained_and_merged(everything, tmp_path):
    model = load(LLAMA)
    adapted = attach(model, "lora")
    adapted = adapted.replace({k: a + np.float32(0.1) for k, a in adapted.theta.items()})
    loss, grads = adapted.value_and_grad(tiny.example(model))
    assert np.isfinite(loss) and all(g.dtype == np.float32 for g in grads.values())
    save_merged(adapted, LLAMA, tmp_path / "merged")
    np.testing.assert_allclose(
        Adapted(load(tmp_path / "merged")).logits(tiny.example(model)), adapted.logits(tiny.example(model)), atol=1e-5
    )


def test_numbers_that_are_not_finite_are_told_when_they_are_used(everything, tmp_path):
    for p in LLAMA.iterdir():
        (tmp_path / p.name).write_bytes(p.read_bytes())
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    key = next(k for k, e in header.items() if k.endswith("down_proj.weight"))
    begin = 8 + length + header[key]["data_offsets"][0]
    size = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}[header[key]["dtype"]]
    data[begin : begin + size] = b"\xff" * size  # NaN in all of them
    path.write_bytes(bytes(data))
    model = load(tmp_path)
    with pytest.raises(Bad, match=rf"{key} has 1 of \d+ weights that are NaN, infinite or beyond the range of float32"):
        attach(model, "lora").logits(tiny.example(model))


OPENED = """
import re, sys, time
from pathlib import Path
from minipeft.checkpoints import load
began = time.perf_counter()
model = load(sys.argv[1])
seconds, status = time.perf_counter() - began, Path("/proc/self/status")
held = re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1] if status.exists() else 0  # of this process, not of its parent
print(seconds, held, model.size)
"""


def test_a_large_base_is_opened_without_being_read(tmp_path):
    """Three gigabytes of zeros that no disk holds: opened in a moment, in little memory."""
    width, words = 1024, 600_000
    config = dict(
        model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=width, n_layer=1, n_head=4, n_inner=8, vocab_size=words,
        n_positions=8, tie_word_embeddings=True,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    of_layer = {
        "ln_1.weight": [width], "ln_1.bias": [width], "ln_2.weight": [width], "ln_2.bias": [width], "attn.c_attn.weight": [width, 3 * width],
        "attn.c_attn.bias": [3 * width], "attn.c_proj.weight": [width, width], "attn.c_proj.bias": [width],
        "mlp.c_fc.weight": [width, 8], "mlp.c_fc.bias": [8], "mlp.c_proj.weight": [8, width], "mlp.c_proj.bias": [width],
    }  # fmt: skip
    shapes = {f"transformer.h.0.{k}": s for k, s in of_layer.items()}
    shapes |= {"transformer.wte.weight": [words, width], "transformer.wpe.weight": [8, width]}
    shapes |= {"transformer.ln_f.weight": [width], "transformer.ln_f.bias": [width]}
    header, at = {}, 0
    for key, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[key] = dict(dtype="F32", shape=shape, data_offsets=[at, at + size])
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (tmp_path / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)  # a hole
    done = subprocess.run([sys.executable, "-c", OPENED, str(tmp_path)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    seconds, kilobytes, size = done.stdout.split()
    assert int(size) * 4 == at > 2.4e9
    assert float(seconds) < 2 and int(kilobytes) < 400_000, done.stdout
