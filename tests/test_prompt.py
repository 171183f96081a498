"""At the prompt: what objects show, what `help` says, what completes, and mistakes that are answered by a line."""

import dataclasses
import pydoc
import subprocess
import sys

import numpy as np
import pytest

import minipeft
from minipeft import attach
from minipeft.arithmetic import Combination
from minipeft.conformance import tiny
from minipeft.conformance.cases import listed
from minipeft.engine import Tensor, ops
from minipeft.errors import Bad, meant, near
from minipeft.method import METHODS, load_methods, method_class
from minipeft.targets import sites
from minipeft.train import Adafactor, AdamW

load_methods()
OURS = sorted((c for c in METHODS.values() if c.__module__.startswith("minipeft.methods.")), key=lambda c: c.name)


@pytest.fixture(scope="module")
def shown():
    """One of everything that one comes to hold, of a model with many layers and many adapted sites."""
    model = tiny.model("llama", np.float32, layers=12)
    batch = tiny.example(model, 8, 24)
    adapted = attach(model, "DoRA", targets="all-linear")
    trained = minipeft.fit(adapted, [batch], steps=2)
    out = adapted.forward(batch, {k: Tensor(v) for k, v in adapted.theta.items()})
    named = [m.A for m in OURS if hasattr(m, "A")] + [c() for c in OURS]
    site = sites(model)["layers.0.attn.q.weight"]
    adapter = adapted.adapters[0]
    return [
        model,
        model.arch,
        model.params,
        batch,
        adapted,
        adapter,
        trained,
        out,
        out.logits,
        out.tokens,
        site,
        *named,
    ]


def test_everything_shows_itself_in_a_few_lines(shown):
    for x in shown:
        assert len(repr(x)) <= 400 and repr(x).count("\n") <= 3 and " at 0x" not in repr(x), repr(x)


def test_what_is_shown_is_what_is_held(shown):
    model, arch, params, batch, adapted, adapter, trained, out, logits = shown[:9]
    assert repr(arch).startswith(
        "Arch(family='llama', d=24, layers=12, heads=6, ff=40, vocab=50, kv_heads=3, norm='rms'"
    )
    assert eval(repr(arch), {"Arch": type(arch)}) == arch  # what is left out is as usual
    assert repr(params) == f"Parameters({len(model.params)} arrays)"
    assert repr(batch).startswith("Batch(input_ids=int64 (8, 24), attention_mask=int64 (8, 24), labels=int64 (8, 24)")
    assert repr(adapter) == f"Adapter(default: DoRA() at 84 sites, {adapter.size:,} numbers in 252 arrays trained)"
    assert repr(trained).startswith(
        f"Trained({adapted!r}, 2 steps, loss {trained.losses[0]:.4g} to {trained.losses[-1]:.4g}, "
    )
    assert (
        repr(out).startswith("Output(logits=float32 (8, 24, 50), ")
        and repr(logits) == "Tensor(float32 (8, 24, 50), linear)"
    )
    assert (
        repr(Tensor(np.ones(2))) == "Tensor(array([1., 1.]))"
        and repr(ops.neg(Tensor(np.ones(2)))) == "Tensor(array([-1., -1.]))"
    )


@pytest.mark.parametrize("cls", OURS, ids=lambda c: c.name)
def test_a_method_shows_the_settings_that_are_not_as_usual(cls):
    assert len(repr(cls())) < 40 and "=" not in repr(cls()).replace("targets=", "")
    made = minipeft.settings.tried(cls, tiny.arch("llama"))
    assert eval(repr(made), {c.__name__: c for c in OURS}) == made


def test_help_shows_no_addresses():
    """Of defaults and declarations, which are functions at times."""
    for x in [getattr(minipeft, n) for n in minipeft.__all__ if n not in ("METHODS", "__version__")] + [
        *OURS,
        Tensor,
        AdamW,
    ]:
        assert not [line for line in pydoc.plain(pydoc.render_doc(x)).splitlines() if " at 0x" in line], x


# --- names ------------------------------------------------------------------------------------------------------------


def test_methods_are_attributes_that_complete():
    assert {c.__name__ for c in OURS} | set(minipeft.__all__) == set(dir(minipeft))
    assert all(getattr(minipeft, c.__name__) is c for c in OURS) and minipeft.tape.example is not None


def test_importing_the_package_imports_nothing_of_it():
    code = "import sys, minipeft; print([m for m in sys.modules if m.startswith('minipeft.') or m == 'numpy'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Lora", "did you mean LoRA,"),
        ("atach", "did you mean attach,"),
        ("lora", "did you mean LoRA,"),
        ("_lora", "'_lora'$"),
    ],
)
def test_a_wrong_attribute_is_told_its_near_misses(name, says):
    with pytest.raises(AttributeError, match=f"module 'minipeft' has no attribute '{name}'.*{says}|{says}"):
        getattr(minipeft, name)


@pytest.mark.parametrize("cls", OURS, ids=lambda c: c.name)
def test_a_method_has_its_name_however_it_is_written(cls):
    words = {cls.name, cls.__name__, cls.name.upper(), cls.name.replace("_", "-"), cls.name.replace("_", "")}
    assert {method_class(word) for word in words} == {cls}


def test_names_are_names_everywhere():
    assert attach(tiny.model(), "DoRA").adapters[0].method.name == "dora"
    assert listed(methods=["IA3"]) == listed(methods=["ia3"])
    with pytest.raises(Bad, match=r"method 'lroa' is unknown \(did you mean lora"):
        attach(tiny.model(), "lroa")


def test_meant_and_near():
    assert (
        meant("A-b_C", ["abd", "abc"]) == "abc" and meant("ABC", ["abc", "ABC"]) == "ABC" and meant("x", ["y"]) is None
    )
    assert (
        near("ALPHA", ["alpha", "r"]) == " (did you mean alpha?)" and near("rank", ["r", "n"]) == " (did you mean r?)"
    )
    assert near("zzz", ["r", "n"]) == ""


# --- settings and folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: minipeft.LoRA(rank=4), r"LoRA has no setting 'rank' \(did you mean r\?\); it has targets, r, alpha,"),
        (lambda: minipeft.LoRA(lora_alpha=4), r"LoRA has no setting 'lora_alpha' \(did you mean alpha"),
        (lambda: dataclasses.replace(minipeft.LoRA(), droput=0.1), r"no setting 'droput' \(did you mean dropout\?\)"),
        (lambda: AdamW(weigth_decay=0.1), r"AdamW has no setting 'weigth_decay' \(did you mean weight_decay\?\)"),
        (lambda: Adafactor(lrate=0.1), r"Adafactor has no setting 'lrate' \(did you mean relative, lr"),
        (lambda: Combination(knd="cat"), r"Combination has no setting 'knd' \(did you mean kind"),
    ],
)
def test_a_wrong_setting_is_told_its_near_misses(make, says):
    for kind in (Bad, TypeError):
        with pytest.raises(kind, match=says) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_patterns_name_the_setting_too():
    with pytest.raises(
        Bad, match=r"patterns for layers.0.attn.q.weight: LoRA has no setting 'rank' \(did you mean r\?\)"
    ):
        attach(tiny.model(), "lora", patterns={"layers.0.*": {"rank": 4}})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gpt2", r"of the Hugging Face hub: `hf download gpt2 --local-dir gpt2` makes one"),
        ("org/Some-7B", r"`hf download org/Some-7B --local-dir Some-7B` makes one"),
        ("/no/such/place", "$"),
    ],
)
def test_a_name_on_a_hub_is_no_folder(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        Bad, match=f"^{name}: no such folder; expected one with config.json and model.safetensors.*{hint}"
    ):
        minipeft.load(name)
