"""`minipeft compare` and the data options of `minipeft train`."""

import json

import pytest

from minipeft.cli import main
from minipeft.data import BASE

QUICK = ["--steps", "2", "--seeds", "2", "--jobs", "1"]


def call(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "own.csv"
    rows = [f"{word} {i},{label}" for label, word in (("good", "lovely"), ("bad", "awful")) for i in range(60)]
    path.write_text("text,label\n" + "\n".join(rows))
    return path


def test_everything_it_writes(tmp_path, monkeypatch, capsys, data):
    monkeypatch.chdir(tmp_path)
    files = ["--json", "out.json", "--html", "out.html", "--png", "out.png"]
    status, out, err = call(capsys, "compare", "ia3", "--data", data, *QUICK, *files)
    assert status == 0 and out.startswith("- ") and all(len(line) <= 80 for line in out.splitlines())
    assert "120 labelled rows (" in err and "ia3" in err  # how many were read, and a line as each method ends
    found = json.loads((tmp_path / "out.json").read_text())
    rows = {r["method"]: r for r in found["rows"]}
    assert set(rows) == {"majority", "frozen", "ia3"} and rows["ia3"]["seeds"] == [0, 1]
    assert set(rows["ia3"]["gain"]) == {"mean", "half", "p"} and found["findings"]
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG" and "<svg" in (tmp_path / "out.html").read_text()


@pytest.mark.wide
def test_settings_and_targets(capsys, data):
    words = [
        "compare",
        "lora",
        "ia3",
        "--set",
        "lora.r=2",
        "--targets",
        "q_proj",
        "--data",
        data,
        *QUICK,
        "--json",
        "-",
    ]
    status, out, _ = call(capsys, *words)
    rows = {r["method"]: r for r in json.loads(out)["rows"]}
    assert status == 0 and rows["lora"]["trained"] == 3 * 2 * (128 + 128) and rows["ia3"]["trained"] == 3 * 128


def test_where_nothing_fits_it_ends_before_training(capsys, data):
    status, out, err = call(capsys, "compare", "lora", "--targets", "nowhere", "--data", data, *QUICK)
    assert status == 2 and not out and "match nothing" in err and "frozen" not in err


@pytest.mark.parametrize("words, says", [
    (["lora", "--all"], "expected methods or --all, found both: lora"),
    (["lora", "lora"], "'lora' is named twice"),
    (["lora", "--lr", "-1"], "--lr -1"),
    (["lora", "--lr", "nan"], "--lr nan"),
    (["lora", "--length", "1"], "--length"),
    (["lora", "--set", "rr=3"], "did you mean r"),
    (["lora", "--set", "ia3.r=3"], "ia3"),
    (["lora", "--html", "."], "expected a file, found a folder"),
])  # fmt: skip
def test_mistakes_are_found_before_training(capsys, words, says):
    status, out, err = call(capsys, "compare", *words, *QUICK)
    assert status == 2 and not out and says in err and "frozen" not in err


def test_a_missing_matplotlib_is_found_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    status, out, err = call(capsys, "compare", "lora", *QUICK, "--html", tmp_path / "x.html")
    assert status == 2 and not out and "plots need matplotlib" in err and "frozen" not in err


def test_train_has_a_rate_of_nothing_and_says_what_it_read(capsys, tmp_path, data):
    """Trained at a rate of 0, a classifier that starts at zero gives the loss of a coin."""
    status, out, err = call(capsys, "train", "lora", tmp_path / "a", "--lr", "0", "--steps", "2", "--data", data)
    assert status == 0 and "held-out loss 0.693" in out and "120 labelled rows" in err
    status, out, _ = call(capsys, "train", "lora", tmp_path / "b", "--steps", "2", "--warmup", "0", "--data", data)
    assert status == 0 and "held-out loss 0.693" not in out


def test_train_without_a_tokenizer(capsys, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors"):
        (base / name).write_bytes((BASE / name).read_bytes())
    (base / "vocab.txt").write_text("a\nb\n")
    status, out, err = call(capsys, "train", "lora", tmp_path / "a", "--base", base, "--steps", "2")
    assert (
        status == 2 and not out and "expected tokenizer.json, found vocab.txt" in err and not (tmp_path / "a").exists()
    )
