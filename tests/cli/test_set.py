"""What --set and --targets say of methods."""

import json

import pytest

from minipeft.cli.settings import chosen_settings, fields_of, settings, settings_not_for, typed
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods, method_class
from minipeft.settings import small

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
        for key, field in fields_of(cls).items():
            usual = field[1]
            if isinstance(usual, tuple) and usual and not isinstance(usual[0], int):
                continue  # methods built over others are not set by words
            assert typed("--set", repr(usual), field) == usual, (name, key)
            if not isinstance(usual, str):
                with pytest.raises(Bad, match=r"expected .* found str"):
                    typed(f"--set {key}=nonsense", "nonsense", field)


def test_of_several_methods_each_gets_what_it_has(capsys):
    classes = [METHODS[n] for n in ("lora", "dora", "ia3")]
    chosen = chosen_settings(classes, ["r=4", "dora.alpha=2"], "q_proj")
    assert chosen == {
        "lora": dict(r=4, targets="q_proj"), "dora": dict(r=4, alpha=2.0, targets="q_proj"), "ia3": dict(targets="q_proj")
    }  # fmt: skip
    settings_not_for(chosen, ["r=4", "dora.alpha=2"])
    assert capsys.readouterr().err == "minipeft: r=4 is no setting of ia3\n"
    with pytest.raises(Bad, match="given twice"):
        chosen_settings(classes, ["r=4", "dora.r=2"])


def test_settings_are_over_the_size_that_suits():
    arch, cls = tiny.arch("llama"), METHODS["lora"]
    made = settings(cls, arch, ["rslora=True"], "q_proj")
    assert made.rslora and made.targets == "q_proj" and made.r == small(cls, arch).r


def test_check_with_settings_and_targets(call):
    status, out, _ = call(
        "check", "lora", "--family", "llama", "--set", "rslora=True", "--targets", "o_proj", "--json", "-"
    )
    assert status == 0 and {v["outcome"] for v in json.loads(out)["lora"]} == {"pass"}
    status, out, _ = call("check", "lora", "--family", "llama", "--targets", "no_such", "--json", "-")
    assert {v["outcome"] for v in json.loads(out)["lora"]} == {"n/a"}
