"""Adapters of PEFT on layers that are repeated: what PEFT cannot have there is one clear line."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.errors import Bad, Note
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.method import METHODS, load_methods
from minipeft.model.replicated import replicated

DATA = Path(__file__).parents[2] / "data"
ROOT = DATA / "peft"
load_methods()


@pytest.fixture(scope="module")
def bases():
    return {n: load(ROOT / n / "base", np.float64) for n in ("llama", "gpt2", "t5", "vit", "bert-cls")}


def changed(folder, **change):
    shutil.copytree(ROOT / "llama/lora-replicated/adapter", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (dict(bias="lora_only"), "bias='lora_only' beside layer_replication: PEFT has one weight for all copies of a layer"),
    ],
)  # fmt: skip
def test_what_copies_would_change_twice(change, line, bases, tmp_path):
    with pytest.raises(Bad, match=line):
        load_peft(bases["llama"], changed(tmp_path / "a", **change))


def test_layers_that_are_not_those_of_the_model(bases, tmp_path):
    folder, model = ROOT / "llama/lora-replicated/adapter", bases["llama"]
    first = load_peft(model, folder)
    assert len(load_peft(first, folder, "second").adapters) == 2  # both on the same layers
    for there in (replicated(model, [(0, 2)]), attach(model, "lora", name="first")):
        with pytest.raises(
            Bad, match=r"layer_replication: expected .*, as this model has it, found \[\[0, 2\], \[0, 1\]"
        ):
            load_peft(there, folder)
    with pytest.raises(
        Bad, match=r"layer_replication: expected \[\[0, 2\], \[0, 2\]\], as this model has it, found None"
    ):
        load_peft(first, ROOT / "llama/lora/adapter", "plain")


@pytest.mark.parametrize(
    ("base", "method", "options", "line"),
    [
        ("gpt2", "lora", {}, "PEFT repeats no layers of gpt2 with the head 'lm': it does not look at transformer.h"),
        ("vit", "lora", {}, "PEFT repeats no layers of vit with the head 'classify': it does not look at vit.layers"),
        ("llama", "loha", {}, "PEFT repeats no layers for LOHA: it has no layer_replication there; merge the adapter"),
        (
            "llama",
            "pissa",
            {},
            "init_lora_weights='pissa': PEFT takes it out of the base, and out of a weight that several modules share",
        ),
        ("bert-cls", "lora", dict(bias="adapted"), "bias='lora_only' beside layer_replication"),
    ],
)
def test_what_is_not_written(base, method, options, line, bases, tmp_path):
    made = attach(replicated(bases[base], [(0, 2), (0, 1)]), METHODS[method](), **options)
    with pytest.raises(Bad, match=line):
        save_peft(made, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_copies_everything_is_written(bases, tmp_path):
    made = attach(replicated(bases["llama"], [(1, 2)]), METHODS["pissa"](r=2), targets="q_proj", bias="adapted")
    save_peft(made, tmp_path)
    again = load_peft(bases["llama"], tmp_path)
    assert again.model.origin == (1,) and set(again.adapters[0].arrays) == set(made.adapters[0].arrays)


@pytest.mark.parametrize(
    ("name", "ranges", "noted"),
    [
        ("qwen2", [(0, 2), (0, 1)], True),  # transformers has a kind of attention for two layers
        ("qwen2", [(1, 2)], False),
        ("qwen2-types", [(1, 2)], True),  # and takes the first one's
        ("qwen2-types", [(0, 1)], False),
    ],
)
def test_windows_that_transformers_takes_by_new_numbers(name, ranges, noted, tmp_path):
    model = load(DATA / "bases" / name, np.float64)
    made = attach(replicated(model, ranges), METHODS["lora"](r=2))
    for act in (lambda: save_peft(made, tmp_path), lambda: load_peft(model, tmp_path)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            act()
        lines = [str(w.message) for w in told if w.category is Note]
        assert any("takes the windows of qwen2 by the new numbers of its layers" in t for t in lines) == noted
