"""Which sites a target names: a name is meant whole where it can be, in targets, exclusions, patterns and whole modules."""

import re

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.scaling.ia3 import IA3
from minipeft.targets import select, sites

load_methods()
DECODER_Q = ["layers.0.attn.q.weight", "layers.1.attn.q.weight"]
ENCODER_Q = [f"encoder.{n}" for n in DECODER_Q]


def t5(targets, **options):
    return [s.name for s in select(tiny.model("t5"), targets, **options)]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("layers.0.attn.q.weight", DECODER_Q[:1]),  # the whole name of a site
        ("encoder.layers.0.attn.q.weight", ENCODER_Q[:1]),
        ("layers.0.attn.q", DECODER_Q[:1]),  # of a module, ours
        ("decoder.block.0.layer.0.SelfAttention.q", DECODER_Q[:1]),  # or the checkpoint's
        ("layers.*.attn.q.weight", DECODER_Q),  # a glob over whole names
        ("encoder.layers.*.attn.q.weight", ENCODER_Q),
        ("attn.q.weight", ENCODER_Q + DECODER_Q),  # an end, of both
        ("SelfAttention.q", ENCODER_Q + DECODER_Q),
        ("final.norm.weight", ["final.norm.weight"]),
        ("embed.out", ["embed.out"]),
        ("*embed.out", ["encoder.embed.out", "embed.out"]),
        (r"re:(?i)LAYERS\.0\.ATTN\.Q", DECODER_Q[:1]),  # flags
    ],
)
def test_a_whole_name_is_not_taken_as_an_end(targets, expected):
    assert sorted(t5(targets)) == sorted(expected)


def test_a_whole_name_leaves_out_itself_alone():
    assert t5("attn.q.weight", exclude="layers.0.attn.q.weight") == [*ENCODER_Q, DECODER_Q[1]]
    assert t5("attn.q.weight", exclude="layers.*") == ENCODER_Q


def test_a_pattern_changes_the_stack_it_names():
    patterns = {"layers.0.attn.q.weight": {"r": 2}, "encoder.layers.1.*": {"r": 3}}
    adapter = attach(tiny.model("t5"), LoRA(r=5), targets="attn.q.weight", patterns=patterns).adapters[0]
    assert {s: m.r for s, m in adapter.at.items()} == dict(zip([*ENCODER_Q, *DECODER_Q], [5, 3, 2, 5], strict=True))
    with pytest.raises(
        Bad, match=r"pattern 'layers.0.attn.q.weight' matches none of the targets \(did you mean encoder"
    ):
        attach(tiny.model("t5"), LoRA(), targets="encoder.layers.0.attn.q.weight", patterns={DECODER_Q[0]: {"r": 2}})


@pytest.mark.parametrize(
    ("whole", "inside"),
    [
        ("layers.0", r"layers\.0\."),
        ("encoder.layers.0.attn", r"encoder\.layers\.0\.attn\."),
        ("decoder.block.1", r"layers\.1\."),
        ("final.norm", r"final\.norm\."),
        ("layers.*.mlp.norm.weight", r"layers\.\d+\.mlp\.norm\.weight"),
        ("mlp.norm", r"(encoder\.)?layers\.\d+\.mlp\.norm\."),
        ("DenseReluDense", r"(encoder\.)?layers\.\d+\.mlp\.(?!norm)"),
    ],
)
def test_modules_trained_whole_are_those_that_are_named(whole, inside):
    model = tiny.model("t5")
    adapter = attach(model, LoRA(), targets="cross.k.weight", train_whole=[whole]).adapters[0]
    found = {s for s, m in adapter.at.items() if m.name == "full"}
    assert found == {n for n in model.params if re.match(inside, n)} and found


def test_the_scaled_inputs_of_ia3_are_those_that_are_named():
    adapter = attach(tiny.model("t5"), IA3(targets="mlp.down.weight", inputs="layers.0.mlp.down.weight")).adapters[0]
    assert {k for k in adapter.arrays if k.endswith("l_ff")} == {"layers.0.mlp.down.weight:l_ff"}


BOTH = {  # by default in both stacks
    "lora": r".*attn\.[qv]\.weight", "houlsby": r".*\.(attn|cross|mlp)\.out", "invertible": r"(encoder\.)?embed\.out|head\.in",
    "ia3": r".*((attn|cross)\.[kv]|mlp\.down)\.weight", "loreft": r"(encoder\.)?layers\.\d+\.out",
    "llama_adapter": r".*attn\.heads", "full": r".*\.(weight|bias)", "pfeiffer": r".*mlp\.out", "poly": r".*attn\.[qv]\.weight",
}  # fmt: skip


@pytest.mark.parametrize("method", BOTH)
def test_what_methods_attach_to_by_default_is_in_both_stacks(method):
    expected = [s for s in sites(tiny.model("t5")) if re.fullmatch(BOTH[method], s)]
    assert t5(METHODS[method]().targets) == expected
    assert {s.startswith("encoder.") for s in expected} == {True, False}


def test_the_seed_does_not_depend_on_the_order_of_targets():
    one, two = (attach(tiny.model("t5"), LoRA(), targets=t).adapters[0] for t in (DECODER_Q, DECODER_Q[::-1]))
    assert list(one.at) == list(two.at) and all((one.arrays[k] == v).all() for k, v in two.arrays.items())
    assert np.any(one.arrays[f"{DECODER_Q[0]}:A"])


def test_a_pattern_that_never_ends_is_one_line(monkeypatch):
    monkeypatch.setattr("minipeft.patterns.PATTERN_SECONDS", 0.2)
    for target in ("re:(.*)*_", "re:" + "a" * 10**5, "*" * 10**5):
        with pytest.raises(Bad, match=r"target.*expected a pattern") as told:
            t5(target)
        assert "\n" not in str(told.value) and len(str(told.value)) < 250


def test_a_glob_of_many_stars_is_matched_at_once():
    with pytest.raises(Bad, match="match nothing"):
        t5("*a" * 100 + "=")


def test_more_targets_than_any_model_has_are_one_line():
    with pytest.raises(Bad, match="expected at most 8,192 that are no whole names, found 10,000"):
        t5(" ".join(map(str, range(10_000))))
