"""Options that every command shares: what --set and --targets read, and where results go."""

import json

import pytest

from minipeft.cli import common
from minipeft.cli.common import Outputs, chosen_settings, fields_of, settings, typed
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods, method_class

load_methods()


@pytest.mark.parametrize(
    ("method", "word", "value"),
    [
        ("lora", "r=4", 4),
        ("lora", "alpha=16", 16.0),
        ("lora", "alpha=1e-3", 1e-3),
        ("lora", "rslora=true", True),
        ("lora", "rslora=False", False),
        ("lora", "targets=q_proj v_proj", "q_proj v_proj"),
        ("lora", "targets='q_proj v_proj'", "q_proj v_proj"),
        ("lora", r"targets=re:layers\.0\..*=", r"re:layers\.0\..*="),
        ("lora", "targets=None", "None"),
        ("lora", "targets=3", "3"),
        ("shira", "seed=7", 7),
        ("shira", "seed=None", None),
        ("osf", "effective_rank=0.5", 0.5),
        ("osf", "effective_rank=2", 2),
        ("trainable_tokens", "tokens=1,2", (1, 2)),
        ("trainable_tokens", "tokens=[1, 2]", (1, 2)),
        ("trainable_tokens", "tokens=3", (3,)),
    ],
)
def test_a_word_is_read_as_its_fields_type(method, word, value):
    key = word.partition("=")[0]
    got = typed(f"--set {word}", word.partition("=")[2], fields_of(method_class(method))[key])
    assert got == value and type(got) is type(value)


def test_every_setting_reads_back_what_it_is():
    """The words for the usual value of each setting of every method give that value, and 'nonsense' gives a text or a refusal."""
    for name, cls in METHODS.items():
        for key, (hint, usual) in fields_of(cls).items():
            if isinstance(usual, tuple) and usual and not isinstance(usual[0], int):
                continue  # methods built over others are not set by words
            assert typed("--set", repr(usual), (hint, usual)) == usual, (name, key)
            if not isinstance(usual, str):
                with pytest.raises(Bad, match=r"expected .* found str"):
                    typed(f"--set {key}=nonsense", "nonsense", (hint, usual))


def test_of_several_methods_each_gets_what_it_has(capsys):
    classes = [METHODS[n] for n in ("lora", "dora", "ia3")]
    chosen = chosen_settings(classes, ["r=4", "dora.alpha=2"], "q_proj")
    assert chosen == {
        "lora": dict(r=4, targets="q_proj"), "dora": dict(r=4, alpha=2.0, targets="q_proj"), "ia3": dict(targets="q_proj")
    }  # fmt: skip
    common.settings_not_for(chosen, ["r=4", "dora.alpha=2"])
    assert capsys.readouterr().err == "minipeft: r=4 is no setting of ia3\n"
    with pytest.raises(Bad, match="given twice"):
        chosen_settings(classes, ["r=4", "dora.r=2"])


def test_settings_are_over_the_size_that_suits():
    arch, cls = tiny.arch("llama"), METHODS["lora"]
    made = settings(cls, arch, ["rslora=True"], "q_proj")
    assert made.rslora and made.targets == "q_proj" and made.r == cls.sized(arch).r


def test_check_with_settings_and_targets(call):
    status, out, _ = call(
        "check", "lora", "--family", "llama", "--set", "rslora=True", "--targets", "o_proj", "--json", "-"
    )
    assert status == 0 and {v["outcome"] for v in json.loads(out)["lora"]} == {"pass"}
    status, out, _ = call("check", "lora", "--family", "llama", "--targets", "no_such", "--json", "-")
    assert {v["outcome"] for v in json.loads(out)["lora"]} == {"n/a"}


def test_results_go_to_files_or_to_standard_output(tmp_path, capsys):
    outputs = Outputs(json=tmp_path / "new" / "a.json", html=None)
    outputs.show("said [red]\x1b")
    outputs.json({"a": [float("nan"), float("-inf"), "é"], 1: None})
    outputs.write("html", lambda: pytest.fail("nobody asked"))
    assert capsys.readouterr().out == "said [red]\\x1b\n"
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": ["nan", "-inf", "é"], "1": None}


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["list", "--json", "-"], "["),
        (["list", "--markdown", "-"], "| method"),
        (["check", "ia3", "--family", "llama", "--json", "-"], "{"),
        (["verify", "ia3", "--case", "ia3.forward.usual", "--json", "-"], "["),
        (["verify", "ia3", "--case", "ia3.forward.usual", "--html", "-"], "<!doctype html>"),
        (["verify", "ia3", "--case", "ia3.forward.usual", "--markdown", "-"], "| method"),
        (["verify", "ia3", "--case", "ia3.forward.usual", "--junit", "-"], "<?xml"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else "",
)
def test_a_dash_is_standard_output_and_nothing_else_is_there(call, tmp_path, monkeypatch, words, begins):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call(*words)
    assert status == 0 and out.lower().startswith(begins) and not list(tmp_path.iterdir())
    if "--json" in words:
        json.loads(out)


def test_a_table_and_files_at_once(call, tmp_path):
    places = [w for end in ("json", "markdown") for w in (f"--{end}", tmp_path / end)]
    status, out, _ = call("list", *places)
    assert status == 0 and "lora" in out and {p.name for p in tmp_path.iterdir()} == {"json", "markdown"}
