import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.conformance import tiny
from minipeft.errors import Bad, Unfit
from minipeft.merging import digest, merge
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.scaling.ia3 import IA3
from minipeft.methods.selective.bitfit import BitFit
from minipeft.methods.structured.vera import VeRA
from minipeft.settings import small
from minipeft.targets import select, sites
from minipeft.train import SGD, Adafactor, AdamW, fit

BASES = Path(__file__).parent / "data" / "bases"
load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
FAMILIES = sorted(tiny.ARCHS)


def names(family, targets, **options):
    return [s.name for s in select(tiny.model(family), targets, **options)]


def moved(adapted, by=0.1):
    rng = np.random.default_rng(5)
    return adapted.replace({k: x + by * rng.standard_normal(x.shape) for k, x in adapted.theta.items()})


def apart(a, b):
    return float(abs(a - b).max())


# --- sites and targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_every_parameter_and_activation(family):
    model = tiny.model(family)
    found = sites(model)
    assert set(model.params) <= set(found)
    assert all(found[n].shape == W.shape and found[n].W is W for n, W in model.params.items())
    beyond = {n: s for n, s in found.items() if n not in model.params}
    assert {s.kind for n, s in beyond.items() if n != "head.weight"} == {"activation"}
    assert ("head.weight" in beyond) == model.arch.tied
    kinds = {s.kind for s in found.values()}
    assert ("bias" in kinds) == any(n.endswith("bias") for n in model.params)


KINDS = {
    "layers.1.attn.norm.weight": "norm", "layers.1.attn.norm.bias": "bias", "layers.1.mlp.up.bias": "bias",
    "embed.positions.weight": "embedding", "embed.cls": "table", "embed.patch.weight": "linear", "final.norm.weight": "norm",
}  # fmt: skip


def test_what_sort_a_site_is():
    assert {n: sites(tiny.model("vit"))[n].kind for n in KINDS} == KINDS
    assert sites(tiny.model("t5"))["relbias.weight"].kind == "table"


Q = ["layers.0.attn.q.weight", "layers.1.attn.q.weight"]
V = ["layers.0.attn.v.weight", "layers.1.attn.v.weight"]
LINEARS = [f"layers.{n}.{m}.weight" for n in (0, 1) for m in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")]  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attn.q.weight", Q),
        ("layers.*.attn.q.weight", Q),
        ("layers.1.attn.[qv].weight", [Q[1], V[1]]),
        ("q_proj", Q),
        ("self_attn.q_proj", Q),
        ("model.layers.0.self_attn.q_proj", Q[:1]),
        (["q_proj", "v_proj"], [Q[0], V[0], Q[1], V[1]]),
        ("v_proj q_proj", [Q[0], V[0], Q[1], V[1]]),  # in model order
        ("lm_head", ["head.weight"]),
        ("layers.0.attn.q", Q[:1]),  # our module's name
        ("all-linear", LINEARS),
        ("All-Linear", LINEARS),
        (r"re:model\.layers\.\d\.self_attn\.(q|v)_proj", [Q[0], V[0], Q[1], V[1]]),
        (r"re:layers\.1\.attn\.q", Q[1:]),
        (r"re:layers\.1", ["layers.1"]),  # the whole name must match: no prefix, and no weight below it
        ("qkv.weight|attn.q.weight|attn.v.weight", Q),  # the first alternative that matches
        ("attn.q.weight nothing.like.it", Q),
    ],
)
def test_targets_of_a_llama(targets, expected):
    assert names("llama", targets) == expected


def test_targets_leave_out_and_stay_in_layers():
    assert names("llama", "q_proj v_proj", exclude="v_proj") == Q
    assert names("llama", "q_proj v_proj", exclude=r"re:.*layers\.0.*") == [Q[1], V[1]]
    assert names("llama", "attn.*.weight", layers=[1], exclude=["k_proj", "o_proj", "attn.norm.weight"]) == [Q[1], V[1]]
    assert names("llama", "q_proj", layers=range(2)) == Q
    assert names("llama", "mlp.out", layers=(0,)) == ["layers.0.mlp.out"]


def test_other_families_answer_to_their_own_names():
    assert names("gpt2", "c_attn") == ["layers.0.attn.qkv.weight", "layers.1.attn.qkv.weight"]
    assert names("bert", "query") == Q
    assert "score.weight" not in names("bert", "all-linear") and "pooler.weight" not in names("bert", "all-linear")
    assert [n for n in names("vit", "all-linear") if "patch" in n] == []
    cross = [n for n in names("t5", "all-linear") if "cross" in n]
    assert len(cross) == 8 and len(names("t5", "all-linear")) == 2 * 7 + 2 * 11


@given(st.sets(st.sampled_from(sorted(tiny.model().params)), min_size=1), st.data())
def test_exact_names_select_themselves_in_model_order(wanted, data):
    model = tiny.model()
    asked = data.draw(st.permutations(sorted(wanted)))
    out = data.draw(st.sets(st.sampled_from(sorted(wanted)), max_size=len(wanted) - 1))
    expected = [n for n in model.params if n in wanted - out]
    assert [s.name for s in select(model, asked, exclude=sorted(out))] == expected


@pytest.mark.parametrize(
    ("targets", "options", "says"),
    [
        ("q_porj", {}, r"targets 'q_porj' match nothing in this llama model \(did you mean q_proj"),
        ("attn.w.weight", {}, r"did you mean .*attn\.\w\.weight"),
        ("q_proj", dict(layers=[7]), r"match nothing in this llama model in layers \[7\]"),
        ("q_proj", dict(exclude="q_proj"), "match nothing"),
        ("*.bias", {}, "it has no biases"),
        ("", {}, r"targets '' match nothing in this llama model$"),
        ([], {}, r"targets '' match nothing in this llama model$"),
        ("re:(", {}, r"target 're:\(' is no regular expression"),
    ],
)
def test_targets_that_match_nothing(targets, options, says):
    with pytest.raises(Bad, match=says) as caught:
        select(tiny.model(), targets, **options)
    assert "\n" not in str(caught.value)


def test_nothing_to_attach_to_is_told_from_other_mistakes():
    with pytest.raises(Unfit):
        select(tiny.model("vit"), "mlp.gate.weight")


# --- attaching ------------------------------------------------------------------------------------------------------


def test_patterns_change_fields_where_the_first_matches():
    patterns = {"layers.0.*": {"r": 2}, "v_proj": {"alpha": 3.0, "r": 5}}
    adapter = attach(tiny.model(), LoRA(r=4, alpha=8.0), patterns=patterns).adapters[0]
    sizes = {site: (m.r, m.alpha) for site, m in adapter.at.items()}
    assert sizes == {Q[0]: (2, 8.0), V[0]: (2, 8.0), Q[1]: (4, 8.0), V[1]: (5, 3.0)}
    assert {s: a["A"].shape[0] for s, a in adapter.grouped().items()} == {Q[0]: 2, V[0]: 2, Q[1]: 4, V[1]: 5}


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


# --- merging --------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(st.sampled_from(FAMILIES), st.integers(1, 5), st.booleans(), st.sampled_from(["none", "all"]))
def test_merged_is_adapted(family, r, lora_bias, bias):
    model, batch = tiny.model(family), tiny.example(tiny.model(family))
    method = LoRA(r=r, lora_bias=lora_bias)
    adapted = moved(attach(model, method, targets="all-linear", bias=bias if not lora_bias else "none"))
    plain = merge(adapted)
    assert apart(Adapted(plain).logits(batch), adapted.logits(batch)) < 1e-11
    assert apart(Adapted(plain).logits(batch), Adapted(model).logits(batch)) > 1e-3
    assert merge(adapted.using()).digest() == model.digest()


OVER = {
    "lora": (lambda: LoRA(r=2, alpha=6, lora_bias=True), "all-linear"),
    "ia3": (IA3, "attn.v.weight attn.qkv.weight mlp.down.weight"),
    "trainable_tokens": (lambda: METHODS["trainable_tokens"](tokens=(3, 7), head_bias="drop"), "embed.tokens.weight"),
}


@pytest.mark.parametrize(
    ("family", "other"), [("gpt2", "lora"), ("bert", "lora"), ("gpt2", "ia3"), ("bert-mlm", "trainable_tokens")]
)
def test_a_bias_is_trained_beneath_what_a_weight_does_to_it(family, other):
    """As in PEFT, where the base's bias is trained and an adapter is around its linear; in either order of adapters."""
    model = tiny.model(family) if family in FAMILIES else load(BASES / family, np.float64)
    batch = tiny.example(model)
    make, targets = OVER[other]
    both = [("other", make(), dict(targets=targets)), ("biases", LoRA(r=2), dict(bias="all"))]
    for order in (both, both[::-1]):
        adapted = model
        for name, method, how in order:
            adapted = attach(adapted, method, name=name, **how)
        adapted = moved(adapted)
        plain = merge(adapted)
        assert apart(Adapted(plain).logits(batch), adapted.logits(batch)) < 1e-11
        if other == "lora":
            b, c = (adapted.theta[k] for k in ("biases/layers.0.mlp.up.bias:W1", "other/layers.0.mlp.up.weight:c"))
            np.testing.assert_allclose(plain.params["layers.0.mlp.up.bias"], b + 3 * c, rtol=1e-14)


def test_merging_breaks_a_tie_only_where_it_must():
    model, batch = tiny.model("gpt2"), tiny.example(tiny.model("gpt2"))
    adapted = moved(attach(model, LoRA(r=2), targets="embed.tokens.weight"))
    plain = merge(adapted)
    assert not plain.arch.tied and (plain.params["head.weight"] == model.params["embed.tokens.weight"]).all()
    assert apart(Adapted(plain).logits(batch), adapted.logits(batch)) < 1e-12
    assert merge(attach(model, LoRA(r=2), targets="c_attn")).arch.tied


def test_what_does_not_merge_is_named():
    with pytest.raises(Bad, match=r"adapter 'soft' \(prompt_tuning\) does not merge"):
        merge(attach(tiny.model(), "prompt_tuning", name="soft"))


# --- frozen means frozen --------------------------------------------------------------------------------------------


@given(st.sampled_from(FAMILIES), st.data())
def test_base_arrays_cannot_be_written_to(family, data):
    model = tiny.model(family)
    name = data.draw(st.sampled_from(sorted(model.params)))
    with pytest.raises(ValueError, match="read-only"):
        model.params[name][...] = 0
    with pytest.raises(ValueError, match="read-only"):
        attach(model, "full").model.params[name][0] += 1


def test_stored_arrays_cannot_be_written_to():
    stored = attach(tiny.model(), VeRA()).adapters[0].stored
    assert stored
    for a in stored.values():
        with pytest.raises(ValueError, match="read-only"):
            a[...] = 0


@settings(max_examples=5)
@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(
        [SGD(lr=0.01, momentum=0.9, weight_decay=0.1), AdamW(lr=0.01, weight_decay=0.1), Adafactor(weight_decay=0.1)]
    ),
    st.integers(0, 99),
)
@pytest.mark.parametrize("name", SHIPPED)
def test_frozen_stays_frozen(name, family, optimiser, seed):
    """Arrays copied before, compared after: the base, what methods store, and what gradients and moments there are."""
    cls = METHODS[name]
    model = tiny.model(family, seed=seed)
    method = small(cls, model.arch)
    batch = tiny.example(model, seed=seed, tasks=getattr(method, "n_tasks", 1))
    try:
        adapted = attach(model, method, data=[batch], seed=seed)
    except Unfit:
        return
    before = {k: np.array(v) for k, v in adapted.model.params.items() if not hasattr(v, "dequantize")}
    whole, stored = adapted.model.digest(), {k: np.array(v) for k, v in adapted.adapters[0].stored.items()}
    trained = {
        f"default/{k}": a.shape for k, a in adapted.adapters[0].arrays.items() if k in adapted.adapters[0].trained
    }
    _, grads = adapted.value_and_grad(batch)
    assert {k: g.shape for k, g in grads.items()} == trained
    moments = optimiser.init(adapted.theta)
    assert {k.split("/", 1)[1] for k in moments} == set(trained)
    assert sum(m.size for k, m in moments.items()) <= 2 * sum(int(np.prod(s)) for s in trained.values())
    after = fit(adapted, [batch], steps=2, optimiser=optimiser).adapted
    assert after.model.digest() == adapted.model.digest() == whole
    for k, v in before.items():
        assert np.array_equal(after.model.params[k], v)
    for k, v in stored.items():
        assert np.array_equal(after.adapters[0].arrays[k], v)
    assert any(not np.array_equal(after.theta[k], adapted.theta[k]) for k in trained)
