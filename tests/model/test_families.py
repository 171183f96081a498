"""Every family against what transformers computed with the same checkpoint in float64 (tests/record/record_bases.py)."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
from computed import held, ratios
from sampled import in_turn

from minipeft.checkpoints import FAMILIES, load
from minipeft.checkpoints.files import read_tensors

ROOT = Path(__file__).parents[1] / "data" / "bases"
NAMES = sorted(p.name for p in ROOT.iterdir())
RESULTS = ("logits", "hidden", "loss")


def recorded(name):
    """{padding: (inputs, results)} of a recording; the generated ids apart are left out."""
    groups = {}
    for key, a in read_tensors(ROOT / name / "expected.safetensors").items():
        padding, _, leaf = key.partition("/")
        given, want = groups.setdefault(padding, ({}, {}))
        if leaf != "generated":
            (want if leaf in RESULTS or leaf.startswith("grad::") else given)[leaf] = a
    return groups


CASES = [(name, padding) for name in NAMES for padding in sorted(recorded(name))]  # in one order in every worker


def test_every_family_is_recorded():
    assert {json.loads((ROOT / n / "config.json").read_text())["model_type"] for n in NAMES} == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "padding", "dtype"),
    [(*case, np.float64) for case in CASES] + in_turn([(*case, np.float32) for case in CASES], every=12),
)
def test_equals_transformers(name, padding, dtype):
    given, want = recorded(name)[padding]
    found = ratios(load(ROOT / name, dtype), given, want)
    assert {"loss"} < set(found)
    assert any(k.startswith("grad::") for k in found)
    assert held(found), found


@pytest.mark.parametrize("name", NAMES)
def test_the_comparison_sees_a_small_error(name):
    """One parameter off by 1e-9 of its size is far outside of the tolerance in float64."""
    given, want = recorded(name)["none"]
    model = load(ROOT / name, np.float64)
    for key in ("embed.tokens.weight", "embed.patch.weight", "layers.1.mlp.down.weight"):
        if key in model.params:
            wrong = dataclasses.replace(model, params={**model.params, key: model.params[key] * (1 + 1e-9)})
            assert not held(ratios(wrong, given, want)), key


# --- how it is stored -----------------------------------------------------------------------------------------------


def decoded(bits, dtype):
    """The numbers that the bytes of a safetensors entry stand for, in float64."""
    if dtype != "BF16":
        return np.frombuffer(bits, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float64)
    b = np.frombuffer(bits, "<u2").astype(np.int64)  # a sign, 8 bits of exponent, 7 of mantissa
    assert ((b >> 7 & 255) > 0).all()  # no subnormals, no zeros
    return (1 - 2.0 * (b >> 15)) * np.ldexp(1 + (b & 127) / 128, (b >> 7 & 255) - 127)


@pytest.mark.parametrize("name, code, files", [("mistral", "F16", 1), ("qwen2", "BF16", 1), ("llama", "F32", 4)])
def test_storage_does_not_change_values(name, code, files):
    """float16, bfloat16 and shards are read as the values they hold, bit for bit, into float32 and float64."""
    paths = sorted((ROOT / name).glob("model*.safetensors"))
    entries = dict(e for p in paths for e in safetensors.deserialize(p.read_bytes()))
    assert (len(paths), {e["dtype"] for e in entries.values()}) == (files, {code})
    model, wide = load(ROOT / name), load(ROOT / name, np.float64)
    assert len(entries) == len(model.params)
    for key, W in model.params.items():
        module, _, leaf = key.rpartition(".")
        entry = entries[f"{model.names.theirs(module)}.{leaf}"]
        want = decoded(entry["data"], code).reshape(entry["shape"])
        assert (W.dtype, wide.params[key].dtype) == (np.float32, np.float64)
        assert (want == W).all()
        assert (wide.params[key] == want).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_the_dtype_asked_for_is_given(name, dtype):
    assert {W.dtype for W in load(ROOT / name, dtype).params.values()} == {np.dtype(dtype)}
