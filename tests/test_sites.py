"""The sites of a model, and which of them a target names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.conformance import tiny
from minipeft.errors import Bad, Unfit
from minipeft.method import METHODS, load_methods
from minipeft.targets import select, sites

BASES = Path(__file__).parent / "data" / "bases"
load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
FAMILIES = sorted(tiny.ARCHS)


def names(family, targets, **options):
    return [s.name for s in select(tiny.model(family), targets, **options)]


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
