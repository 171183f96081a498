"""Layers that are repeated: the model computes what one with copies of their arrays does, and holds none twice."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load, save_model
from minipeft.checkpoints.files import read_header, read_json, read_tensors, write_json
from minipeft.checkpoints.merged import probe, save_merged
from minipeft.checkpoints.native import load_adapter, save_adapter, seal
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.methods.lowrank.lora import LoRA
from minipeft.model.batch import batch
from minipeft.model.generate import generate
from minipeft.model.replicated import as_ranges, replicated

BASES = Path(__file__).parents[1] / "data" / "bases"


def by_hand(model, *layers):
    """The same layers, of arrays of their own."""
    params = {n: np.array(W) for n, W in model.params.items() if not n.startswith("layers.")}
    for new, old in enumerate(layers):
        start = f"layers.{old}."
        own = {n.removeprefix(start): np.array(W) for n, W in model.params.items() if n.startswith(start)}
        params |= {f"layers.{new}.{n}": W for n, W in own.items()}
    return dataclasses.replace(model, params=params, arch=dataclasses.replace(model.arch, layers=len(layers)))


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bert", "vit"])
def test_a_layer_may_stand_several_times(name):
    model = load(BASES / name, np.float64)
    made, want, given = replicated(model, [(0, 2), (0, 1)]), by_hand(model, 0, 1, 0), probe(model)
    assert made.origin == (0, 1, 0) and made.digest() == want.digest() != model.digest()
    assert made.size == model.size and made.astype(np.float32).size == model.size
    assert made.params["layers.2.mlp.up.weight"] is made.params["layers.0.mlp.up.weight"]
    assert list(made.params) == list(load_again(made).params)
    got, plain = (Adapted(m).forward(given).hidden for m in (made, model))
    np.testing.assert_array_equal(got, Adapted(want).forward(given).hidden)
    assert abs(got - plain).max() > 1e-3


def load_again(model):
    from minipeft.model.parts import shapes

    return dataclasses.replace(model, params={n: model.params[n] for n in shapes(model.arch)})


def test_layers_of_repeated_layers_are_those_of_the_base():
    model = load(BASES / "qwen2-windows", np.float64)
    twice = replicated(replicated(model, [(0, 3), (1, 3)]), [(3, 5), (0, 1)])  # 0 1 2 1 2, then 1 2 0
    once = replicated(model, [(1, 3), (0, 1)])
    assert twice.origin == once.origin == (1, 2, 0) and as_ranges(twice.origin) == [[1, 3], [0, 1]]
    assert twice.digest() == once.digest() and twice.arch == once.arch


@pytest.mark.parametrize("name", ["qwen2-windows", "qwen2-types"])
def test_every_layer_keeps_its_window(name, tmp_path):
    model = load(BASES / name, np.float64)
    last = model.arch.layers - 1
    assert len({model.arch.window_of(n) for n in range(last + 1)}) == 2
    for ranges in ([(last, last + 1), (0, last + 1)], [(last, last + 1), (0, 1)], [(0, 1)], [(last, last + 1)]):
        made = replicated(model, ranges)
        want = [model.arch.window_of(n) for n in made.origin]
        assert [made.arch.window_of(n) for n in range(len(want))] == want
        save_model(made, tmp_path / "made")
        again = load(tmp_path / "made", np.float64)
        assert again.arch == made.arch and again.digest() == made.digest() and again.origin == ()


def test_a_cache_has_a_place_for_every_layer():
    model = replicated(load(BASES / "mistral", np.float64), [(0, 2), (0, 2)])
    ids = np.array([[5, 9, 3, 17, 30, 2, 8], [8, 30, 4, 11, 2, 9, 1]])
    found = [generate(Adapted(model), batch(input_ids=ids), 6, use_cache=c) for c in (True, False)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("ranges", "line"),
    [
        ([], "expected ranges of layers, found none"),
        ([(0, 3)], r"expected ranges of layers within 0 … 2, each with one or more, found 0 … 3"),
        ([(0, 2), (1, 1)], "found 1 … 1"),
        ([(-1, 1)], "found -1 … 1"),
    ],
)
def test_ranges_that_are_none(ranges, line):
    with pytest.raises(Bad, match=line):
        replicated(load(BASES / "llama"), ranges)


def test_an_encoder_decoder_has_two_stacks():
    with pytest.raises(Bad, match="layers of t5 cannot be repeated: it has two stacks"):
        replicated(load(BASES / "t5"), [(0, 1)])


@pytest.fixture
def trained():
    made = attach(replicated(load(BASES / "llama", np.float32), [(0, 2), (0, 1)]), LoRA(r=2), targets="q_proj up_proj")
    rng = np.random.default_rng(0)
    return made.replace({k: v + rng.normal(0, 0.2, v.shape).astype(v.dtype) for k, v in made.theta.items()})


def test_an_adapter_finds_its_layers_again(trained, tmp_path):
    save_adapter(trained, tmp_path / "a")
    base, given = load(BASES / "llama", np.float32), probe(trained.model)
    for model in (base, trained.model):
        np.testing.assert_array_equal(load_adapter(model, tmp_path / "a").logits(given), trained.logits(given))
    with pytest.raises(Bad, match="repeats layers of its base; attach it before others, to the base as it is"):
        load_adapter(replicated(base, [(1, 2)]), tmp_path / "a")
    with pytest.raises(Bad, match="attach it before others"):
        load_adapter(attach(base, "lora", name="first"), tmp_path / "a")


@pytest.mark.parametrize(
    ("layers", "line"),
    [([[0, 9]], "layers: expected ranges of layers within 0 … 2"), ([[0, 1.5]], "its layers are malformed"), ([[0, 2]] * 3000, "its layers are malformed"), ([3], "cannot be read")],
)  # fmt: skip
def test_layers_that_the_base_has_not(layers, line, trained, tmp_path):
    save_adapter(trained, tmp_path)
    about = read_json(tmp_path / "adapter.json") | dict(layers=layers)
    about["digest"] = seal(about, read_tensors(tmp_path / "adapter.safetensors"))
    write_json(tmp_path / "adapter.json", about)
    with pytest.raises(Bad, match=line):
        load_adapter(load(BASES / "llama"), tmp_path)


def test_merged_layers_are_apart(trained, tmp_path):
    made = merge(trained)
    assert made.origin == () and made.size > trained.model.size
    save_merged(trained, BASES / "llama", tmp_path / "m")
    read = load(tmp_path / "m", np.float32)
    assert read.arch.layers == 3 and read.digest() == made.digest()
    q = [read.params[f"layers.{n}.attn.q.weight"] for n in range(3)]
    assert (q[0] != q[2]).any()
    assert (read.params["layers.2.attn.k.weight"] == read.params["layers.0.attn.k.weight"]).all()


def test_copies_are_written_in_the_type_of_their_layer(tmp_path):
    save_model(load(BASES / "llama"), tmp_path / "half", dtype="bfloat16")  # norms are in 32 bits
    made = attach(replicated(load(tmp_path / "half"), [(1, 2), (0, 2)]), LoRA(r=2), targets="layers.0.attn.q.weight")
    save_merged(made, tmp_path / "half", tmp_path / "m")
    header = read_header(tmp_path / "m" / "model.safetensors")
    for module, kind in {"input_layernorm": "F32", "mlp.up_proj": "BF16"}.items():
        assert {header[f"model.layers.{n}.{module}.weight"]["dtype"] for n in range(3)} == {kind}
