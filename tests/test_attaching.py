"""Where a method goes, what it begins with, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.merging import digest
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.scaling.ia3 import IA3
from minipeft.methods.selective.bitfit import BitFit
from minipeft.methods.structured.fourierft import FourierFT
from minipeft.methods.structured.vera import VeRA

BASES = Path(__file__).parent / "data" / "bases"
load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
FAMILIES = sorted(tiny.ARCHS)
Q = ["layers.0.attn.q.weight", "layers.1.attn.q.weight"]
V = ["layers.0.attn.v.weight", "layers.1.attn.v.weight"]


def moved(adapted, by=0.1):
    rng = np.random.default_rng(5)
    return adapted.replace({k: x + by * rng.standard_normal(x.shape) for k, x in adapted.theta.items()})


def apart(a, b):
    return float(abs(a - b).max())


def test_patterns_change_fields_where_the_first_matches():
    patterns = {"layers.0.*": {"r": 2}, "v_proj": {"alpha": 3.0, "r": 5}}
    adapter = attach(tiny.model(), LoRA(r=4, alpha=8.0), patterns=patterns).adapters[0]
    sizes = {site: (m.r, m.alpha) for site, m in adapter.at.items()}
    assert sizes == {Q[0]: (2, 8.0), V[0]: (2, 8.0), Q[1]: (4, 8.0), V[1]: (5, 3.0)}
    assert {s: a["A"].shape[0] for s, a in adapter.grouped().items()} == {Q[0]: 2, V[0]: 2, Q[1]: 4, V[1]: 5}


def test_settings_may_be_given_here():
    model = tiny.model("llama")
    for method in ("lora", LoRA(alpha=3.0)):
        made = attach(model, method, r=3, alpha=5.0).adapters[0].method
        assert made == LoRA(r=3, alpha=5.0)
    assert attach(model, LoRA(alpha=3.0), r=3).adapters[0].method == LoRA(r=3, alpha=3.0)
    with pytest.raises(Bad, match=r"LoRA has no setting 'rank' \(did you mean r\?\)"):
        attach(model, "lora", rank=3)
    with pytest.raises(Bad, match="r must be at least 1, found 0"):
        attach(model, LoRA(), r=0)


def test_what_a_method_requires_it_requires_as_patterns_have_it():
    """1000 places are too many for either weight, and neither has them."""
    method, patterns = FourierFT(n_frequency=1000), {"*.q.*": dict(n_frequency=5), "*.v.*": dict(n_frequency=6)}
    adapter = attach(tiny.model(), method, targets="attn.q.weight attn.v.weight", patterns=patterns).adapters[0]
    assert {m.n_frequency for m in adapter.at.values()} == {5, 6}
    for first in ("q", "v"):
        with pytest.raises(Bad, match=rf"n_frequency must be at most .*, found 1000 at layers.0.attn.{first}.weight"):
            attach(
                tiny.model(),
                method,
                targets="attn.q.weight attn.v.weight",
                patterns={f"*.{'v' if first == 'q' else 'q'}.*": dict(n_frequency=5)},
            )


def test_patterns_reach_the_arithmetic():
    model, batch = tiny.model(), tiny.example(tiny.model())
    adapted = moved(attach(model, LoRA(r=4, alpha=8.0), targets="q_proj", patterns={"layers.1.*": {"alpha": 2.0}}))
    own = adapted.adapters[0].grouped()
    scales = {Q[0]: 8.0 / 4, Q[1]: 2.0 / 4}
    by_hand = {s: model.params[s] + c * own[s]["B"] @ own[s]["A"] for s, c in scales.items()}
    expected = Adapted(dataclasses.replace(model, params={**model.params, **by_hand})).logits(batch)
    assert apart(adapted.logits(batch), expected) < 1e-12


def test_modules_trained_whole():
    adapter = attach(tiny.model("bert"), LoRA(), train_whole=["classifier", "layers.0.mlp.norm.*"]).adapters[0]
    whole = {k.removesuffix(":W1") for k in adapter.trained if k.endswith(":W1")}
    assert whole == {"score.weight", "score.bias", "layers.0.mlp.norm.weight", "layers.0.mlp.norm.bias"}
    assert all(adapter.at[s].name == "full" for s in whole)


def test_a_target_trained_whole_is_not_adapted_as_well():
    adapter = attach(tiny.model(), LoRA(), targets="q_proj v_proj", train_whole=["q_proj"]).adapters[0]
    assert [m.name for s, m in adapter.at.items() if s in Q] == ["full", "full"]
    assert [m.name for s, m in adapter.at.items() if s in V] == ["lora", "lora"]


@pytest.mark.parametrize("bias", ["none", "adapted", "all"])
def test_which_biases_are_trained(bias):
    model = tiny.model("bert")
    adapter = attach(model, LoRA(), targets="attn.q.weight", bias=bias).adapters[0]
    every = {n for n in model.params if n.endswith("bias")}
    expected = {"none": set(), "adapted": {"layers.0.attn.q.bias", "layers.1.attn.q.bias"}, "all": every}[bias]
    assert {s for s in adapter.at if s.endswith("bias")} == expected


def test_a_trained_bias_is_used():
    model, batch = tiny.model("bert"), tiny.example(tiny.model("bert"))
    adapted = attach(model, LoRA(), targets="attn.q.weight", bias="adapted", layers=[0])
    name = "layers.0.attn.q.bias"
    new = np.arange(24.0)
    changed = adapted.replace({f"default/{name}:W1": new})
    expected = Adapted(dataclasses.replace(model, params={**model.params, name: new})).logits(batch)
    assert apart(changed.logits(batch), expected) < 1e-12


def test_several_adapters_add_up_and_switch():
    model, batch = tiny.model(), tiny.example(tiny.model())
    both = attach(attach(model, LoRA(r=2), name="one"), LoRA(r=3), name="two", targets="q_proj up_proj", seed=9)
    both = moved(both)
    one, two = (a.grouped() for a in both.adapters)
    scale = {"one": 8.0 / 2, "two": 8.0 / 3}

    def by_hand(*used):
        params = dict(model.params)
        for name in used:
            for site, own in (one if name == "one" else two).items():
                params[site] = params[site] + scale[name] * own["B"] @ own["A"]
        return Adapted(dataclasses.replace(model, params=params)).logits(batch)

    assert apart(both.logits(batch), by_hand("one", "two")) < 1e-12
    assert apart(both.using("one").logits(batch), by_hand("one")) < 1e-12
    assert apart(both.using("two").logits(batch), by_hand("two")) < 1e-12
    assert (both.using().logits(batch) == Adapted(model).logits(batch)).all()
    assert (both.using().using("one", "two").logits(batch) == both.logits(batch)).all()
    assert {k.split("/")[0] for k in both.using("two").theta} == {"two"} and not both.using().theta


def test_methods_beside_one_another():
    model = tiny.model("bert")
    adapter = attach(model, LoRA(), beside=[BitFit(), IA3(targets="mlp.down.weight")]).adapters[0]
    by_method = {m.name: [s for s in adapter.at if adapter.at[s] is m] for m in adapter.at.values()}
    assert by_method["ia3"] == ["layers.0.mlp.down.weight", "layers.1.mlp.down.weight"]
    assert by_method["lora"] == [Q[0], V[0], Q[1], V[1]] and all(s.endswith("bias") for s in by_method["bitfit"])
    with pytest.raises(Bad, match=r"layers.0.attn.q.weight is targeted by lora and by vera"):
        attach(model, LoRA(), beside=[VeRA(targets="attn.q.weight")])


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_the_seed_fixes_the_initial_values(a, b):
    model = tiny.model()
    one, again, other = (digest(attach(model, LoRA(), seed=s).adapters[0].arrays) for s in (a, a, b))
    assert one == again and (one == other) == (a == b)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(name="a/b"), "adapter name 'a/b': expected letters"),
        (dict(targets="q_porj"), "did you mean q_proj"),
        (dict(patterns={"q_proj": {"rank": 3}}), "patterns for layers.0.attn.q.weight: .*rank"),
        (dict(patterns={"q_porj": {"r": 3}}), "pattern 'q_porj' matches none of the targets"),
        (dict(train_whole=["lm_haed"]), r"train_whole 'lm_haed' matches no module \(did you mean lm_head"),
        (dict(bias="lora_only"), "bias 'lora_only': expected none, adapted or all"),
        (dict(targets="mlp.out"), "lora changes weights, but target layers.0.mlp.out is an activation"),
        (dict(targets="final.norm.weight"), "expected linears and lookups"),
    ],
)
def test_mistakes_in_attaching(options, says):
    with pytest.raises(Bad, match=says) as caught:
        attach(tiny.model(), LoRA(), **options)
    assert "\n" not in str(caught.value)


def test_mistakes_with_names():
    adapted = attach(tiny.model(), "lora", name="poems")
    with pytest.raises(Bad, match="an adapter named 'poems' is attached already"):
        attach(adapted, LoRA(), name="poems")
    with pytest.raises(Bad, match=r"adapter 'poem' is not attached; attached: poems \(did you mean poems\?\)"):
        adapted.using("poem")
    with pytest.raises(Bad, match=r"method 'lroa' is unknown \(did you mean lora"):
        attach(tiny.model(), "lroa")
    with pytest.raises(Bad, match="eva measures inputs before it starts"):
        attach(tiny.model(), "eva")
    key = next(iter(adapted.theta))
    with pytest.raises(Bad, match=r"expected shape \(8, 24\), found \(2,\)"):
        adapted.replace({key: np.zeros(2)})
    with pytest.raises(Bad, match="is no trained array of this model"):
        adapted.replace({"poems/nothing:A": np.zeros(2)})


def test_a_setting_that_fits_at_no_site_may_be_another_at_each():
    model = tiny.model()
    few = {"layers.*": dict(n_frequency=3)}
    assert {
        m.n_frequency for m in attach(model, FourierFT(n_frequency=10**6), patterns=few).adapters[0].at.values()
    } == {3}
    with pytest.raises(Bad, match="n_frequency must be at most"):
        attach(model, FourierFT(n_frequency=10**6))
