"""By the command line: what `train` makes is merged and converted; the files hold what the equations say."""

import csv

import numpy as np
import pytest
from sampled import in_turn

from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_json, read_tensors
from minipeft.checkpoints.native import load_adapter
from minipeft.cli import main
from minipeft.conformance.laws import K
from minipeft.conformance.tiny import example
from minipeft.data import BASE

TEXTS = {
    "bad": ["I hate rain", "what a bad day"],
    "so": ["it is a day", "rain is wet"],
    "good": ["I love rain", "a good day"],
}
METHODS = in_turn(["lora", "dora", "ia3", "vera"], every=2)
MODULES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "down": "mlp.down_proj"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    with path.open("w", newline="") as f:
        rows = [(t, label, split) for split in ("train", "test") for label, texts in TEXTS.items() for t in texts]
        csv.writer(f).writerows([("text", "label", "split"), *rows])
    return path


def call(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    assert ended.value.code in (0, None)


def trained(data, out, method, *words):
    call("train", method, out, "--data", data, "--steps", 2, "--dtype", "float64", *words)
    return read_tensors(out / "adapter.safetensors")


def folded(method, base, own):
    """The base's tensors with the equations of a method's file applied, by names and numbers alone."""
    out = {k: v.astype(np.float64) for k, v in base.items()}
    for n in range(3):
        for m, theirs in MODULES.items():
            site = f"layers.{n}.{'mlp' if m == 'down' else 'attn'}.{m}.weight"
            arrays = {k.rpartition(":")[2]: v for k, v in own.items() if k.rpartition(":")[0] == site}
            if not arrays:
                continue
            W, b = f"model.layers.{n}.{theirs}.weight", f"model.layers.{n}.{theirs}.bias"
            if method in ("lora", "dora"):
                out[W] = out[W] + 2.0 * arrays["B"] @ arrays["A"]  # α/r = 8/4
            if method == "dora":
                out[W] *= (arrays["m"] / np.sqrt((out[W] ** 2).sum(axis=1)))[:, None]
            if method == "ia3" and m == "down":
                out[W] = out[W] * arrays["l_ff"]
            elif method == "ia3":
                out[W], out[b] = out[W] * arrays["l"][:, None], out[b] * arrays["l"]
            if method == "vera":
                A, B = own[":A"][:, : out[W].shape[1]], own[":B"][: out[W].shape[0]]
                out[W] = out[W] + arrays["lambda_b"][:, None] * (B @ (arrays["lambda_d"][:, None] * A))
    return out | {"score.weight": own["score.weight:W1"]}


@pytest.mark.parametrize("method", METHODS)
def test_train_merge_convert(method, data, tmp_path):
    own = trained(data, tmp_path / "a", method, *(["--set", "r=4"] if method in ("lora", "dora") else []))
    assert abs(own["score.weight:W1"]).max() > 0
    call("merge", tmp_path / "a", tmp_path / "m", "--base", BASE, "--dtype", "float64")
    found = read_tensors(tmp_path / "m" / "model.safetensors")
    want = folded(method, read_tensors(BASE / "model.safetensors"), own)
    assert set(found) == set(want) and "lm_head.weight" in found
    for k, W in want.items():
        assert found[k].dtype == np.float64
        assert abs(found[k] - W).max() <= K * 2.0**-53 * abs(W).max(), k
    assert any(abs(W - read_tensors(BASE / "model.safetensors").get(k, W)).max() > 1e-4 for k, W in want.items())
    config = read_json(tmp_path / "m" / "config.json")
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["torch_dtype"] == "float64"
    assert sorted(config["id2label"].values()) == sorted(TEXTS) and config["pad_token_id"] == 0

    call("convert", tmp_path / "a", tmp_path / "p", "--base", BASE)
    said, tensors = (
        read_json(tmp_path / "p" / "adapter_config.json"),
        read_tensors(tmp_path / "p" / "adapter_model.safetensors"),
    )
    assert said["task_type"] == "SEQ_CLS" and said["modules_to_save"] == ["score"]
    np.testing.assert_array_equal(tensors["base_model.model.score.weight"], own["score.weight:W1"])
    call("convert", tmp_path / "p", tmp_path / "again", "--base", BASE, "--dtype", "float64")
    one, two = (load_adapter(load(BASE, np.float64), tmp_path / f) for f in ("a", "again"))
    batch = example(one.model)
    np.testing.assert_allclose(two.logits(batch), one.logits(batch), rtol=0, atol=1e-13)


def test_two_classifiers_of_their_weights(data, tmp_path, capsys):
    """--weight: the classifiers that two adapters bring are averaged, and their changes of the body summed."""
    own = [trained(data, tmp_path / n, "lora", "--set", "r=4", "--seed", seed) for n, seed in (("one", 1), ("two", 2))]
    folders = [tmp_path / "one", tmp_path / "two"]
    call("merge", *folders, tmp_path / "m", "--base", BASE, "--dtype", "float64", "--weight", 0.75, "--weight", 0.25)
    found, base = (read_tensors(f / "model.safetensors") for f in (tmp_path / "m", BASE))
    head = 0.75 * own[0]["score.weight:W1"] + 0.25 * own[1]["score.weight:W1"]
    assert abs(found["score.weight"] - head).max() <= K * 2.0**-53
    site, W = "layers.1.attn.v.weight", "model.layers.1.self_attn.v_proj.weight"
    change = [2.0 * o[f"{site}:B"] @ o[f"{site}:A"] for o in own]
    assert abs(found[W] - base[W] - 0.75 * change[0] - 0.25 * change[1]).max() <= K * 2.0**-53
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*map(str, ["merge", *folders, tmp_path / "n", "--weight", 1])])
    assert "--weight: expected one for each of 2 adapters, found 1" in capsys.readouterr().err
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(("method", "command", "says"), [
    ("prefix_tuning", "merge", "(prefix_tuning) does not merge"),
    ("houlsby", "convert", "houlsby cannot be written for PEFT"),
    ("prompt_tuning", "convert", "pool='token' is not what PEFT computes with a classifier on llama"),
])  # fmt: skip
def test_what_has_no_other_form(method, command, says, data, tmp_path, capsys):
    trained(data, tmp_path / "a", method)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([command, str(tmp_path / "a"), str(tmp_path / "m"), "--base", str(BASE)])
    assert ended.value.code == 2 and says in capsys.readouterr().err and not (tmp_path / "m").exists()


def test_the_base_is_held_as_an_adapter_was_trained(data, tmp_path, capsys):
    """Nobody has to remember in which type that was; and what is written has the type of the base's files."""
    trained(data, tmp_path / "a", "lora")
    call("train", "lora", tmp_path / "b", "--data", data, "--steps", 1, "--dtype", "bfloat16")
    for name in "ab":
        call("merge", tmp_path / name, tmp_path / f"m{name}")
        assert read_json(tmp_path / f"m{name}" / "config.json")["torch_dtype"] == "float16"
    assert "once rounded to float16" in capsys.readouterr().out
