"""Adapters in PEFT's format: what is written is what was read, and what does not fit is one clear line."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sampled import in_turn

import minipeft.interop.peft
from minipeft.adapted import Adapted
from minipeft.arrays import array_of
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.errors import Bad
from minipeft.interop.peft.keys import plain_key
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.registry import has, spec_of, specs
from minipeft.interop.peft.writing import save_peft
from minipeft.method import METHODS, load_methods
from minipeft.model.batch import batch
from minipeft.settings import small

ROOT = Path(__file__).parents[2] / "data" / "peft"
CASES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("*/*") if p.name != "base")
IDS = np.array([[5, 9, 3, 17], [8, 30, 4, 11]])


@pytest.fixture(scope="module")
def bases():
    return {p.name: load(p / "base", np.float64) for p in ROOT.iterdir()}


def tensors_of(folder):
    return {p.relative_to(folder).as_posix(): read_tensors(p) for p in folder.rglob("adapter_model.safetensors")}


OF_TWO_STACKS = ("t5/prompt-tuning", "t5/prompt-tuning-one-stack", "t5/p-tuning-t5")


@pytest.mark.parametrize("case", in_turn(CASES, every=12))
def test_written_as_it_was_read(case, bases, tmp_path):
    """The same keys and the same numbers, in every file, but for copies of the base that PEFT stores too."""
    adapted = load_peft(bases[case.split("/")[0]], ROOT / case / "adapter")
    save_peft(adapted, tmp_path)
    was, now = tensors_of(ROOT / case / "adapter"), tensors_of(tmp_path)
    assert set(was) == set(now)
    base = bases[case.split("/")[0]]
    for name, theirs in was.items():
        copies = {k for k in theirs if "base_layer.weight" in k or ".original_module." in k or ".modules_to_save." in k}
        copies |= {k for k in theirs if plain_key(base, k) != k}  # of a tied head
        method = adapted.adapters[0].method
        spec = spec_of(method)
        roots = {k.suffix for k in spec.root_keys.values()}
        copies |= {k for k in theirs if k not in roots and "base_model." + k.rpartition(".")[2] in roots}
        made = [k.suffix for n, k in spec.keys.items() if (a := array_of(type(method), n)) and not a.trained]
        stored = {k for k in now[name] if k in roots or k.endswith(tuple(made))}  # PEFT may leave them out
        assert set(theirs) - copies <= set(now[name]) <= set(theirs) | stored
        for k in set(theirs) & set(now[name]):
            a, b = theirs[k], now[name][k]
            used = slice(0, 3) if case in OF_TWO_STACKS else slice(None)  # the second's rows are never read
            assert a[used].shape == b[used].shape and (a[used] == b[used]).all(), k
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    theirs = json.loads((ROOT / case / "adapter" / "adapter_config.json").read_text())
    expected = "PROMPT_TUNING" if theirs["peft_type"] == "P_TUNING" else theirs["peft_type"]
    assert config["peft_type"] == expected
    again = load_peft(bases[case.split("/")[0]], tmp_path)
    assert {k: v.tolist() for k, v in again.adapters[0].arrays.items()} == {
        k: v.tolist() for k, v in adapted.adapters[0].arrays.items()
    }


def moved(adapted, seed=0):
    """The adapter with noise on all it trains."""
    rng = np.random.default_rng(seed)
    return adapted.replace({k: v + 0.2 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


@pytest.mark.parametrize("setting", ["mlp", "lstm", "projected prefix", "LoRA-GA", "LoRA-GA rslora", "heads"])
def test_what_peft_cannot_hold_is_folded(setting, bases, tmp_path):
    """A network, a projection or subtracted factors become what PEFT has, and compute the same."""
    load_methods()
    model, given = bases["gpt2" if "rslora" in setting else "llama"], batch(input_ids=IDS, labels=IDS)
    if setting in ("mlp", "lstm"):
        adapted = attach(model, METHODS["p_tuning"](p=3, encoder=setting, hidden=6))
    elif setting == "projected prefix":
        adapted = attach(model, METHODS["prefix_tuning"](p=3, hidden=6))
    elif setting == "heads":
        model = dataclasses.replace(model, params={k: v for k, v in model.params.items() if not k.endswith("o.bias")})
        adapted = attach(model, METHODS["llama_adapter"](K=3))
    else:
        adapted = attach(model, METHODS["lora_ga"](r=3, rslora="rslora" in setting), data=[given])
    adapted = moved(adapted)
    save_peft(adapted, tmp_path)
    again = load_peft(model, tmp_path)
    want = adapted.logits(given)
    np.testing.assert_allclose(again.logits(given), want, rtol=0, atol=1e-12 * abs(want).max())
    assert abs(want - Adapted(model).logits(given))[:, -4:].max() > 1e-3 if want.shape[1] == 4 else True


def test_llama_adapter_in_a_reading_that_peft_has_not(bases, tmp_path):
    load_methods()
    with pytest.raises(Bad, match="adds='heads' is not what PEFT computes on gpt2; expected 'bare'"):
        save_peft(attach(bases["gpt2"], METHODS["llama_adapter"](K=2)), tmp_path)
    lower = attach(
        bases["llama"],
        METHODS["llama_adapter"](K=2, adds="projected"),
        targets="layers.0.attn.heads layers.0.attn.o.out",
    )
    with pytest.raises(Bad, match="PEFT adapts the topmost layers"):
        save_peft(lower, tmp_path)
    assert not list(tmp_path.iterdir())


load_methods()
UNWRITTEN = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.") and not has(cls))


@pytest.mark.parametrize("name", UNWRITTEN)
def test_methods_that_peft_has_not(name, bases, tmp_path):
    """Nothing is written where neither the method nor one that it is made of has a file in `minipeft.interop.peft`."""
    with pytest.raises(Bad, match=f"^{name} cannot be written for PEFT: it has no such method; PEFT has [^\n]*$"):
        save_peft(attach(bases["llama"], small(METHODS[name], bases["llama"].arch)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_method_made_of_another_is_written_as_that_only_where_it_computes_the_same():
    assert {"eva", "lora_plus"} & set(UNWRITTEN) == set() and "moslora" in UNWRITTEN  # which has one array more

    class Doubled(METHODS["lora"], register=False):
        def change(self, **arrays):
            return 2 * super().change(**arrays)

    class Same(METHODS["lora"], register=False):
        pass

    assert has(Same) and not has(Doubled)


def test_a_file_is_a_method_s_or_general():
    files = {p.stem for p in Path(minipeft.interop.peft.__path__[0]).glob("*.py")}
    assert set(specs()) == files & set(METHODS)
    assert 0 < len(UNWRITTEN) < len(METHODS)


def test_general_files_name_no_method():
    """But for the two whose arrays may stand beside any method's: modules that are saved whole, and trained tokens."""
    for path in Path(minipeft.interop.peft.__path__[0]).glob("*.py"):
        if path.stem in METHODS:
            continue
        words = {n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)}
        assert words & set(METHODS) <= ({"full", "trainable_tokens"} if path.stem == "keys" else set()), path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


# --- what does not fit ------------------------------------------------------------------------------------------------


def copied(case, tmp_path, config=None, change=None):
    """A recorded adapter with some settings changed, and its tensors passed through `change`."""
    folder = tmp_path / "adapter"
    shutil.copytree(ROOT / case / "adapter", folder)
    settings = json.loads((folder / "adapter_config.json").read_text()) | (config or {})
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v != "absent"}))
    if change is not None:
        tensors = read_tensors(folder / "adapter_model.safetensors")
        write_tensors(folder / "adapter_model.safetensors", change(tensors))
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"peft_type": "LORAX"}, r"peft_type 'LORAX' is not supported; expected one of .*\(did you mean XLORA, LORA"),
        ({"peft_type": None}, "peft_type None is not supported"),
        ({"r": "absent"}, "a LORA adapter needs 'r'"),
        ({"target_parameters": ["q"]}, "target_parameters: 'q' names nothing in this llama base"),
        ({"use_dora": True, "use_bdlora": {}}, "expected one variant of LoRA, found use_dora and use_bdlora"),
        ({"use_dora": True, "init_lora_weights": "mica"}, "expected one variant of LoRA, found use_dora and init_lora_weights='mica'"),
        ({"use_bdlora": {}, "init_lora_weights": "mica"}, "expected one variant of LoRA, found use_bdlora and init_lora_weights='mica'"),
        ({"use_bdlora": {"nblocks": 0}}, r"use_bdlora: expected null or a dictionary of .*nblocks \(an integer of at least 1\)"),
        ({"use_bdlora": {}}, "use_bdlora: expected one side for .*q_proj, found none"),
        ({"use_bdlora": {"target_modules_bd_a": ["q_"], "target_modules_bd_b": ["proj"]}}, "one side for .*q_proj, found A and B"),
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda' changed the base, .* path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16' changed the base, .* begins at random"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "init_lora_weights='loftq' needs 'loftq_iter' in loftq_config"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 2}}, r"loftq_config: expected .*loftq_bits \(one of 4, 8\)"),
        ({"init_lora_weights": "pissa_niter_x"}, "init_lora_weights: expected true, false or the name of a start"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, r"2 target modules have no tensors, the first .*layers.0.self_attn.k_proj"),
        ({"r": 5}, r"lora_A.weight as A: expected shape \(5, 24\), found \(3, 24\)"),
        ({"lora_bias": True}, r"lacks base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.lora_B\.bias"),
    ],
)  # fmt: skip
def test_settings(config, line, bases, tmp_path):
    with pytest.raises(Bad, match=line) as told:
        load_peft(bases["llama"], copied("llama/lora", tmp_path, config))
    assert "\n" not in str(told.value)


def put(key, value):
    return lambda tensors: {**tensors, key: value(tensors.get(key))}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: {k: v for k, v in t.items() if k != Q}, f"lacks {Q}"),
        (lambda t: {k: v for k, v in t.items() if "v_proj" not in k}, "target modules have no tensors, the first .*v_proj"),
        (put(Q, lambda a: np.ascontiguousarray(a.T)), r"expected shape \(3, 24\), found \(24, 3\); it looks transposed"),
        (put(Q, lambda a: a[:2]), r"expected shape \(3, 24\), found \(2, 24\)"),
        (put(Q, lambda a: a * np.nan), "NaN or infinite"),
        (put("base_model.model.extra", lambda _: np.zeros(2, np.float32)), "unexpected key 'base_model.model.extra'"),
        (put(Q.replace("q_proj", "w_proj"), lambda _: np.zeros((3, 24), np.float32)),
         r"names a module this llama base has not: it belongs to another base \(did you mean"),
        (put(Q.replace("layers.0", "layers.7"), lambda _: np.zeros((3, 24), np.float32)), "it belongs to another base"),
        (lambda t: {}, "holds no LORA tensors"),
    ],
)  # fmt: skip
def test_tensors(change, line, bases, tmp_path):
    with pytest.raises(Bad, match=line) as told:
        load_peft(bases["llama"], copied("llama/lora", tmp_path, change=change))
    assert "\n" not in str(told.value)


def test_a_pickle_is_refused(bases, tmp_path):
    folder = copied("llama/lora", tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(Bad, match="a pickle can run any code when it is read; save the adapter as safetensors"):
        load_peft(bases["llama"], folder)


def test_files_that_are_not_there(bases, tmp_path):
    with pytest.raises(Bad, match="no such folder"):
        load_peft(bases["llama"], tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Bad, match=r"adapter_config\.json: no such file"):
        load_peft(bases["llama"], tmp_path / "empty")
    folder = copied("llama/lora", tmp_path)
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(Bad, match="expected an object, found list"):
        load_peft(bases["llama"], folder)


def test_experts(bases, tmp_path):
    folder = copied("llama/xlora", tmp_path)
    shutil.rmtree(folder / "1")
    with pytest.raises(Bad, match="expert '1' of the XLORA adapter is neither in"):
        load_peft(bases["llama"], folder)
    gate = "base_model.internal_xlora_classifier.layers.0.weight"
    lost = copied("llama/xlora", tmp_path / "lost", change=lambda t: {k: v for k, v in t.items() if k != gate})
    with pytest.raises(Bad, match=f"lacks {gate}"):
        load_peft(bases["llama"], lost)
    with pytest.raises(Bad, match="needs adapters, its experts"):
        load_peft(bases["llama"], copied("llama/xlora", tmp_path / "none", {"adapters": {}}))


def test_trained_tokens_of_a_module_that_is_not_named(bases, tmp_path):
    folder = copied("llama/lora-trainable-tokens", tmp_path, {"trainable_token_indices": {"lm_head": [3, 7, 19]}})
    with pytest.raises(Bad, match=r"trainable_token_indices has no tokens for model\.embed_tokens"):
        load_peft(bases["llama"], folder)


def test_a_name_is_taken_once(bases):
    adapted = load_peft(bases["llama"], ROOT / "llama/lora/adapter")
    with pytest.raises(Bad, match="named 'default' is attached already"):
        load_peft(adapted, ROOT / "llama/loha/adapter")
    two = load_peft(adapted, ROOT / "llama/loha/adapter", name="second")
    assert [a.method.name for a in two.adapters] == ["lora", "loha"]
    with pytest.raises(Bad, match="expected one adapter or a name, found 2: default, second"):
        save_peft(two, "never-written")


@pytest.mark.parametrize(
    ("name", "settings"), [("psoft", dict(r=1)), ("osf", dict(effective_rank=12))], ids=["psoft", "osf"]
)
def test_tensors_without_numbers(name, settings, bases, tmp_path):
    """A turn of one direction, and what training has left to a narrow layer, are empty, in PEFT's files too."""
    adapted = attach(bases["llama"], METHODS[name](**settings), targets="k_proj q_proj")
    rng = np.random.default_rng(0)
    adapted = adapted.replace({k: a + 0.1 * rng.standard_normal(a.shape) for k, a in adapted.theta.items()})
    save_peft(adapted, tmp_path)
    assert any(not a.size for a in read_tensors(tmp_path / "adapter_model.safetensors").values())
    given = batch(input_ids=IDS)
    want = adapted.logits(given)
    np.testing.assert_allclose(load_peft(bases["llama"], tmp_path).logits(given), want, rtol=0, atol=1e-6)
    assert abs(want - Adapted(bases["llama"]).logits(given)).max() > 1e-3


def test_weights_of_chosen_vectors_are_of_32_bits(bases, tmp_path):
    """PEFT puts VB-LoRA's weights between its own numbers of 32 bits, and fails with others."""
    method = METHODS["vblora"](r=2, num_vectors=9, vector_length=4, topk=3, only_topk=True)
    adapted = attach(bases["llama"], method, targets="q_proj")
    save_peft(adapted, tmp_path)
    written = read_tensors(tmp_path / "adapter_model.safetensors")
    shares = [a for k, a in written.items() if k.endswith("_topk_weights")]
    assert {a.dtype for a in shares} == {np.dtype("float32")}
    given = batch(input_ids=IDS)
    again = load_peft(bases["llama"], tmp_path).logits(given)
    np.testing.assert_allclose(again, adapted.logits(given), rtol=0, atol=1e-6)
