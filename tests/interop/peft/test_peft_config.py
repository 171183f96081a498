"""adapter_config.json, field by field: each value is one that its field can have, or one line says that it is not."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampled import in_turn

from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors
from minipeft.errors import Bad, Note
from minipeft.interop.peft.config import checked
from minipeft.interop.peft.reading import load_peft_parts
from minipeft.interop.peft.registry import peft_types, specs

ROOT = Path(__file__).parents[2] / "data" / "peft"


def one_of_each_kind():
    """{peft_type: "base/case"}: of what is recorded the case with the shortest name, those on llama first."""
    found = {}
    for path in sorted(
        ROOT.glob("*/*/adapter/adapter_config.json"), key=lambda p: (p.parts[-4] != "llama", len(str(p)), p)
    ):
        found.setdefault(json.loads(path.read_text())["peft_type"], "/".join(path.parts[-4:-2]))
    return found


OF_KIND = one_of_each_kind()
HUGE = 10**9
FIELDS = peft_types()


def recorded(case):
    folder = ROOT / case / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    return folder, config, read_tensors(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def bases():
    return {name: load(ROOT / name / "base", np.float64) for name in {case.split("/")[0] for case in OF_KIND.values()}}


def attached(bases, case, change):
    """A recorded adapter with other settings, by the way that `load_peft` takes."""

    folder, config, tensors = recorded(case)
    config = checked(config | change)
    return load_peft_parts(bases[case.split("/")[0]], config, tensors, folder)


def test_every_kind_that_is_read_is_here():
    assert set(FIELDS) == {s.peft_type for s in specs().values()} == set(OF_KIND)


@pytest.mark.hf
@pytest.mark.parametrize("kind", FIELDS)
def test_the_fields_are_those_of_peft(kind):
    """Every field of PEFT's dataclass, with PEFT's default, and no other."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    theirs = {f.name: f for f in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    assert set(FIELDS[kind]) == set(theirs)
    for name, field in FIELDS[kind].items():
        if name in ("peft_type", "runtime_config"):
            continue
        default = theirs[name].default
        if theirs[name].default_factory is not dataclasses.MISSING:
            default = theirs[name].default_factory()
        assert field.default == getattr(default, "value", default), name
        if field.fate == "read" and not field.needed:
            assert field.kind.holds(field.default), name


@pytest.mark.parametrize("kind", OF_KIND)
def test_a_field_that_is_absent_has_the_default(kind, bases):
    """Without the fields that may be absent, where the recorded ones have their defaults, the same method is read."""
    _, config, _ = recorded(OF_KIND[kind])
    fields = FIELDS[kind]
    kept = {k: v for k, v in config.items() if fields[k].needed or v != fields[k].default}
    assert len(kept) < len(config)
    whole = {k: v for k, v in checked(config).items() if fields[k].fate == "read"}
    assert {k: v for k, v in checked(kept).items() if fields[k].fate == "read"} == whole


LINES = [
    (dict(lora_alpha=None), "lora_alpha: expected a finite number, found None"),
    (dict(lora_alpha="16"), "lora_alpha: expected a finite number, found '16'"),
    (dict(lora_alpha=float("nan")), "lora_alpha: expected a finite number, found nan"),
    (dict(lora_alpha=True), "lora_alpha: expected a finite number, found True"),
    (dict(lora_alpha=10**400), "lora_alpha: expected a finite number"),
    (dict(r=None), "r: expected an integer of at least 1, found None"),
    (dict(r=2.5), "r: expected an integer of at least 1, found 2.5"),
    (dict(r=0), "r: expected an integer of at least 1, found 0"),
    (dict(r="8"), "r: expected an integer of at least 1, found '8'"),
    (dict(r=HUGE), "r must be at most 65,536, found 1000000000"),
    (dict(rank_pattern={"q_proj": HUGE}), "r must be at most 65,536, found 1000000000"),
    (dict(rank_pattern=[3]), "rank_pattern: expected a dictionary from regular expressions to an integer of at least 1"),
    (dict(rank_pattern={"(": 3}), "rank_pattern: expected a dictionary from regular expressions"),
    (dict(alpha_pattern={"q_proj": "3"}), "alpha_pattern: expected a dictionary from regular expressions to a finite number"),
    (dict(target_modules="("), "target_modules: expected a list of names or a regular expression, found '\\('"),
    (dict(target_modules=[3]), "target_modules: expected a list of names or a regular expression"),
    (dict(modules_to_save="lm_head"), "modules_to_save: expected a list of names, found 'lm_head'"),
    (dict(bias="some"), "bias: expected 'none', 'all' or one that ends in '_only', found 'some'"),
    (dict(use_rslora="yes"), "use_rslora: expected true or false, found 'yes'"),
    (dict(task_type="CLS"), "task_type: expected one of 'SEQ_CLS'"),
    (dict(layers_to_transform=[0.5]), "layers_to_transform: expected an integer or a list of integers"),
    (dict(init_lora_weights="ones"), "init_lora_weights: expected true, false or the name of a start, found 'ones'"),
    (dict(kasa_config={"beta": -1}), "kasa_config: expected null or a dictionary of beta .a number of at least 0., gamma"),
    (dict(layer_replication=[[0, 2, 3]]), "layer_replication: expected pairs of layers, the second above the first, 4,096 layers at most, found"),
    (dict(layer_replication=[[1, 1]]), "layer_replication: expected pairs of layers, the second above the first, 4,096 layers at most, found"),
    (dict(layer_replication=[[0, HUGE]]), "layer_replication: expected pairs of layers"),
    (dict(layer_replication=[[0, 9]]), "layer_replication: expected ranges of layers within 0 … 2, each with one or more, found 0 … 9"),
    (dict(layer_replication=[[0, 2]] * 4000), "layer_replication: expected pairs of layers, the second above the first, 4,096 layers at most"),
    (dict(layer_replication=[[0, 2], [0, 1]]), "2 target modules have no tensors, the first model.layers.2.self_attn.q_proj"),
    (dict(peft_type=["LORA"]), r"peft_type \['LORA'\] is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line"), LINES)
def test_values_that_a_field_cannot_have(change, line, bases):
    with pytest.raises(Bad, match=line) as told:
        attached(bases, "llama/lora", change)
    assert "\n" not in str(told.value)


def test_a_field_of_no_known_version_is_named_once():
    _, config, _ = recorded("llama/lora")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            checked(config | dict(use_warp=True, lora_alhpa=3), "here")
    assert [str(w.message) for w in told] == [
        "here: 'lora_alhpa', 'use_warp': unknown to PEFT 0.21.2 for LORA, and not honoured"
    ]
    assert told[0].category is Note


def test_recorded_adapters_have_fields_that_are_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in ROOT.glob("*/*/adapter"):
            checked(json.loads((folder / "adapter_config.json").read_text()))


def test_what_only_says_how_arrays_began_changes_nothing(bases):
    """A converted adapter is plain LoRA, whatever it was converted from."""
    case = "llama/lora"
    plain = attached(bases, case, {})
    for left in (dict(corda_config={"corda_method": "kpm"}), dict(eva_config={"rho": 2.0}), dict(init_lora_weights="eva"),
                 dict(lora_ga_config={"direction": "ArB2r"}), dict(loftq_config={"loftq_bits": 4})):  # fmt: skip
        again = attached(bases, case, left)
        assert again.adapters[0].method == plain.adapters[0].method
    for start in ("gaussian", "orthogonal"):
        again = attached(bases, case, dict(init_lora_weights=start))
        assert again.adapters[0].method == dataclasses.replace(plain.adapters[0].method, start=start)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from([HUGE, -HUGE, 10**400, 0, 1, 2, 0.5, "", "(", ".*", "q_proj", "all", "pissa", "olora", "mica"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.sampled_from(["q_proj", "("]), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


BASES: dict = {}


@pytest.mark.parametrize("kind", in_turn(OF_KIND, every=4))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_junk_in_any_field_is_one_line_or_loads(kind, data):
    names = st.sampled_from(sorted(FIELDS[kind]))
    name = OF_KIND[kind].split("/")[0]
    bases = BASES if name in BASES else BASES | {name: BASES.setdefault(name, load(ROOT / name / "base", np.float64))}
    change = data.draw(st.dictionaries(names, JUNK, min_size=1, max_size=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            attached(bases, OF_KIND[kind], change)
        except Bad as why:
            assert "\n" not in str(why)
