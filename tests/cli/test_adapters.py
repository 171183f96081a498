"""`train`, `merge`, `convert` and `replay`: what they write and print, and their exit codes."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minipeft import attach, load, load_adapter, load_peft, save_adapter, save_peft
from minipeft.adapted import Adapted
from minipeft.checkpoints import with_head
from minipeft.conformance import tiny
from minipeft.data import BASE
from minipeft.merging import merge as fold
from minipeft.methods.lowrank.lora import LoRA

PEFT_CASES = Path(__file__).parents[1] / "data" / "peft" / "llama"


def adapter(folder, save=save_adapter, method=LoRA(r=2)):
    model = load(BASE)
    adapted = attach(model, method, targets="q_proj")
    rng = np.random.default_rng(0)
    moved = {k: v + rng.standard_normal(v.shape).astype(v.dtype) for k, v in adapted.theta.items()}
    save(adapted.replace(moved), folder)
    return adapted.replace(moved)


@pytest.fixture
def few(tmp_path):
    """Few texts to train and to judge on."""
    rows = [f"{'good' if i % 2 else 'bad'} {i},{'ab'[i % 2]},{'test' if i % 8 == 7 else 'train'}" for i in range(40)]
    (tmp_path / "few.csv").write_text("\n".join(["text,label,split", *rows]))
    return ["--data", tmp_path / "few.csv"]


def test_train_then_merge_then_convert(call, few, tmp_path):
    words = ["train", "lora", tmp_path / "a", "--set", "r=2", "--steps", "2", *few]
    status, out, _ = call(*words)
    assert status == 0 and "accuracy" in out
    before = (tmp_path / "a" / "adapter.safetensors").read_bytes()
    assert call(*words)[0] == 0  # ended already: nothing changes
    assert (tmp_path / "a" / "adapter.safetensors").read_bytes() == before


def test_merge(call, tmp_path):
    adapted = adapter(tmp_path / "a")
    status, _, _ = call("merge", tmp_path / "a", tmp_path / "merged")
    merged, batch = load(tmp_path / "merged"), tiny.example(adapted.model)
    assert status == 0 and (tmp_path / "merged" / "tokenizer.json").exists()
    half = {
        k: W.astype(np.float16).astype(np.float32) for k, W in fold(adapted).params.items()
    }  # as the base's file has it
    half = dataclasses.replace(adapted.model, params=half)
    np.testing.assert_array_equal(Adapted(merged).logits(batch), Adapted(half).logits(batch))


def test_combine(call, mistake, tmp_path):
    """Two of different methods: their weighted sum, as one that PEFT reads too."""
    two = adapter(tmp_path / "a"), adapter(tmp_path / "b", save_peft, LoRA(r=3, rslora=True))
    words = ["combine", tmp_path / "a", tmp_path / "b", tmp_path / "both", "--weight", "0.5", "--weight", "-2"]
    status, out, _ = call(*words)
    assert status == 0 and "cat of 2, rank 5" in out
    assert call(*words[:-5], tmp_path / "peft", *words[-4:], "--peft")[0] == 0
    x = tiny.example(two[0].model)
    changes = [a.run().param("layers.0.attn.q.weight") - two[0].model.params["layers.0.attn.q.weight"] for a in two]
    for found in (load_adapter(load(BASE), tmp_path / "both"), load_peft(load(BASE), tmp_path / "peft")):
        got = found.run().param("layers.0.attn.q.weight") - found.model.params["layers.0.attn.q.weight"]
        np.testing.assert_allclose(got, 0.5 * changes[0] - 2 * changes[1], atol=1e-5)
        assert np.isfinite(found.logits(x)).all()
    assert "combine: ties needs a density" in mistake("combine", tmp_path / "a", tmp_path / "c", "--kind", "ties")
    assert "did you mean ties" in mistake("combine", tmp_path / "a", tmp_path / "c", "--kind", "tie")
    assert "--rank: expected a number" in mistake(
        "combine", tmp_path / "a", tmp_path / "c", "--kind", "svd", "--rank", "x"
    )
    assert "--weight: expected one for each" in mistake(
        "combine", tmp_path / "a", tmp_path / "c", "--weight", "1", "--weight", "1"
    )
    assert not (tmp_path / "c").exists()


def test_a_base_in_bfloat16(call, mistake, few, tmp_path):
    half = attach(load(BASE, "bfloat16"), LoRA(r=2), targets="q_proj")
    save_adapter(half, tmp_path / "a")
    assert "another base" in mistake("convert", tmp_path / "a", tmp_path / "b", "--dtype", "float32")
    status, out, _ = call("merge", tmp_path / "a", tmp_path / "b", "--dtype", "bfloat16")
    assert status == 0 and load(tmp_path / "b", "bfloat16").digest() == half.model.digest()
    assert (tmp_path / "b" / "model.safetensors").stat().st_size < 2.1 * half.model.size
    words = ["train", "lora", tmp_path / "t", "--set", "r=2", "--steps", "1", "--dtype", "bfloat16", *few]
    assert call(*words)[0] == 0
    about = json.loads((tmp_path / "t" / "adapter.json").read_text())
    labels = next(shape[0] for site, shape, _ in about["at"] if site == "score.weight")
    assert about["base"] == with_head(load(BASE, "bfloat16"), "classify", labels).digest(without=["score.weight"])


def test_convert_both_ways(call, tmp_path):
    adapted = adapter(tmp_path / "ours")
    assert call("convert", tmp_path / "ours", tmp_path / "theirs")[0] == 0
    assert json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert call("convert", tmp_path / "theirs", tmp_path / "again")[0] == 0
    for k, v in load_peft(load(BASE), tmp_path / "theirs").theta.items():
        np.testing.assert_array_equal(v, adapted.theta[k])
    ours, again = ((tmp_path / n / "adapter.safetensors").read_bytes() for n in ("ours", "again"))
    assert len(ours) == len(again)


def test_an_adapter_has_a_folder_of_its_own(call, mistake, tmp_path):
    """Not its base's, which transformers would then load with it, nor one with an adapter of the other kind."""
    adapter(tmp_path / "a")
    shutil.copytree(BASE, tmp_path / "base")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert call("convert", tmp_path / "a", tmp_path / "p")[0] == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    words = ("--base", tmp_path / "base")
    for out in (tmp_path / "base", tmp_path / "a", tmp_path / "link"):
        assert "a folder that is read from" in mistake("convert", tmp_path / "a", out, *words)
    assert "a folder that is read from" in mistake("convert", tmp_path / "p", tmp_path / "p")
    assert "holds config.json, so it is a checkpoint" in mistake("train", "lora", tmp_path / "base", *words)
    assert "holds config.json, so it is a checkpoint" in mistake("convert", tmp_path / "p", tmp_path / "base")
    assert "holds adapter.json" in mistake("convert", shutil.copytree(tmp_path / "a", tmp_path / "b"), tmp_path / "a")
    assert "holds adapter_config.json" in mistake("train", "lora", tmp_path / "p")
    shutil.rmtree(tmp_path / "b")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_replay(call):
    status, out, _ = call("replay", "--base", PEFT_CASES / "base", PEFT_CASES / "lora", "--json", "-")
    (report,) = json.loads(out)
    assert status == 0 and report["case"] == "lora"
    status, out, _ = call("replay", "--base", PEFT_CASES / "base", PEFT_CASES / "lora", PEFT_CASES / "dora")
    assert status == 0 and "2 of 2 cases agree" in out


def test_an_adapter_of_another_base(mistake, tmp_path):
    adapter(tmp_path / "a")
    assert "another base" in mistake("merge", tmp_path / "a", tmp_path / "b", "--base", PEFT_CASES / "base")


def test_a_corrupt_adapter(mistake, tmp_path):
    adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "adapter.safetensors" in mistake("merge", tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_folder_that_is_no_adapter(mistake, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert "expected adapter.json" in mistake("merge", tmp_path, tmp_path / "b")


def test_what_does_not_merge(mistake, tmp_path):
    from minipeft.methods.prompt.prompt_tuning import PromptTuning

    save_adapter(attach(load(BASE), PromptTuning(p=2)), tmp_path / "a")
    assert "does not merge" in mistake("merge", tmp_path / "a", tmp_path / "b")


def test_peft_cannot_have_it(mistake, tmp_path):
    from minipeft.methods.bottleneck.houlsby import Houlsby

    save_adapter(attach(load(BASE), Houlsby()), tmp_path / "a")
    assert "houlsby" in mistake("convert", tmp_path / "a", tmp_path / "b")


def test_a_place_that_cannot_be_written(mistake, tmp_path):
    adapter(tmp_path / "a", save_peft)
    (tmp_path / "taken").write_text("a file")
    assert "taken" in mistake("convert", tmp_path / "a", tmp_path / "taken" / "b")
