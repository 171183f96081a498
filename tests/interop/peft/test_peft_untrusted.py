"""Adapters that nobody vouches for: what a configuration claims is held against the file before anything of that size is made."""

import json
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sampled import in_turn

from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.errors import Bad
from minipeft.interop.peft.fields import is_number
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.registry import peft_types
from minipeft.interop.peft.writing import save_peft
from minipeft.method import METHODS, load_methods

ROOT = Path(__file__).parents[2] / "data" / "peft"
CASES = ("adalora", "adamss", "pvera", "randlora", "tinylora", "unilora", "vblora", "adaption-prompt", "c3a", "fourierft", "frod", "ia3", "lily-stride", "loha", "lokr", "lora", "oft", "osf", "p-tuning-mlp", "poly", "prefix-tuning", "prompt-tuning", "shira", "trainable-tokens", "vera", "xlora-deep")  # fmt: skip
UP = "base_model.model.model.layers.0.mlp.up_proj."
NORM = "base_model.model.model.layers.0.input_layernorm."
SLOW = "(.*)*_"


@pytest.fixture(scope="module")
def bases():
    return {name: load(ROOT / name / "base", np.float64) for name in ("llama", "bert-cls", "gpt2")}


def copied(case, folder, config=None, change=None):
    shutil.copytree(ROOT / case / "adapter", folder)
    settings = json.loads((folder / "adapter_config.json").read_text()) | (config or {})
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    if change is not None:
        tensors = read_tensors(folder / "adapter_model.safetensors")
        write_tensors(folder / "adapter_model.safetensors", change(tensors))
    return folder


def one_line(bases, case, folder, says, config=None, change=None):
    with pytest.raises(Bad, match=says) as told:
        load_peft(bases[case.split("/")[0]], copied(case, folder, config, change))
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def is_count(kind):
    return any(kind.holds(n) and is_number(n) for n in (1, 3)) and not kind.holds("")


@pytest.mark.parametrize("case", in_turn(CASES, every=8))
def test_no_number_of_a_configuration_is_made_before_it_is_asked(case, bases, tmp_path):
    """Every number that a configuration declares, at sizes that no array of the file has: a line, or it loads, at once."""
    config = json.loads((ROOT / "llama" / case / "adapter" / "adapter_config.json").read_text())
    fields = {k for k, f in peft_types()[config["peft_type"]].items() if f.fate == "read" and is_count(f.kind)}
    folder = copied(f"llama/{case}", tmp_path / "adapter")
    tracemalloc.start()
    began = time.process_time()
    try:
        for field in sorted(fields):
            (folder / "adapter_config.json").write_text(json.dumps(config | {field: 65_536}))
            try:
                load_peft(bases["llama"], folder)
            except Bad as why:
                assert "\n" not in str(why)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 23 and time.process_time() - began < 5


@pytest.mark.parametrize(
    ("case", "config", "says"),
    [
        ("llama/lora", dict(r=60_000), r"lora_A.weight as A: expected shape \(60000, 24\), found \(3, 24\)"),
        ("llama/lora", dict(rank_pattern={"q_proj": 60_000}), r"expected shape \(60000, 24\), found \(3, 24\)"),
        ("llama/prompt-tuning", dict(num_virtual_tokens=60_000), r"prompt_embeddings as P: expected shape \(60000, 24\)"),
        ("llama/prefix-tuning", dict(num_layers=60_000), r"prompt_embeddings as E: expected shape \(3, 1440000\)"),
        ("llama/lokr", dict(r=60_000), "lacks .*lokr_w1"),
        ("llama/oft", dict(num_cayley_neumann_terms=10**9), "num_cayley_neumann_terms: expected an integer in 1 … 1000"),
        ("llama/oft", dict(oft_block_size=3), r"oft_block_size=3 means blocks of 3 at .*q_proj.weight, the file's are of"),
        ("llama/lora", dict(layers_to_transform=list(range(10_000))), "layers_to_transform: expected an integer or a list"),
        ("llama/lora", dict(target_modules=["x"] * 70_000), "target_modules: expected a list of names"),
        ("llama/lora", dict(rank_pattern={f"x{n}": 3 for n in range(9000)}), "rank_pattern: expected a dictionary"),
        ("llama/lora", dict(target_modules=None), "target_modules: expected the modules that have tensors, found none"),
        ("llama/lora", dict(target_modules=[]), "target_modules: expected the modules that have tensors, found none"),
        ("llama/lora", dict(layers_to_transform=[0], layers_pattern="(la)yers"), "expected no group of its own, found one that is 'la'"),
        ("bert-cls/lora-bias-all", dict(bias="none"), "changes 18 parameters of its base, the first bert.embeddings.LayerNorm.bias"),
        ("llama/lora-modules-to-save", dict(modules_to_save=["norm"]), "modules_to_save does not name its module|lacks"),
        ("llama/vera-unsaved", dict(save_projection=True), r"lacks base_model\.vera_A"),
    ],
)  # fmt: skip
def test_what_a_configuration_claims(case, config, says, bases, tmp_path):
    one_line(bases, case, tmp_path / "adapter", says, config)


def put(key, shape, dtype=np.float32):
    return lambda tensors: {**tensors, key: np.ones(shape, dtype)}


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("case", "change", "says"),
    [
        ("llama/lora", put(UP + "weight", (20, 24)), "changes 1 parameters of its base, the first .*up_proj.weight, which"),
        ("llama/lora", put(NORM + "weight", (24,)), "which adapter_config.json neither targets nor saves whole"),
        ("llama/lora", put(NORM + "modules_to_save.default.weight", (24,)), "modules_to_save does not name its module"),
        ("llama/lora", put("base_model.model.model._orig_mod.layers.0.self_attn.q_proj.lora_A.weight", (3, 24)), "are the same tensor"),
        ("llama/lora", put(Q, (3, 24), np.int32), "expected floating-point numbers, found int32"),
        ("llama/lora", put(Q, (3, 24), np.bool_), "expected floating-point numbers, found bool"),
        ("llama/lora", lambda t: {k: (a * np.nan).astype(np.float16) for k, a in t.items()}, "has NaN or infinite values"),
        ("llama/lora-modules-to-save", lambda t: {k: a.astype(np.int64) if "lm_head" in k else a for k, a in t.items()}, "expected floating"),
        ("llama/shira-unseeded", lambda t: {k: a for k, a in t.items() if "indices" not in k}, r"lacks .*shira_indices and 7 more"),
        ("llama/shira", lambda t: {k: a.astype(np.uint32) if "indices" in k else a for k, a in t.items()}, "expected integers, found uint32"),
        ("llama/randlora", lambda t: {k: a + (".1.self_attn.v_proj.randlora_A" in k) for k, a in t.items()}, r"randlora_A are the same tensor"),
        ("llama/randlora-unsaved", put("base_model.model.model.layers.0.mlp.randlora_C", (3,)), "unexpected key"),
        ("llama/lora", lambda t: t | {f"{UP}{n}": np.ones(1, np.float32) for n in range(20_000)}, r"expected at most [\d,]+ tensors"),
    ],
)  # fmt: skip
def test_what_a_file_holds(case, change, says, bases, tmp_path):
    one_line(bases, case, tmp_path / "adapter", says, change=change)


def test_numbers_that_the_base_s_type_has_not(bases, tmp_path):
    folder = copied("llama/lora", tmp_path / "a", change=lambda t: {k: np.full(a.shape, 1e300) for k, a in t.items()})
    load_peft(bases["llama"], folder)
    with pytest.raises(Bad, match="NaN, infinite or beyond the range of float32"):
        load_peft(bases["llama"].astype(np.float32), folder)


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("llama/lora", dict(target_modules=SLOW)),
        ("llama/lora", dict(exclude_modules=SLOW)),
        ("llama/lora", dict(rank_pattern={"q_proj": 3, SLOW: 3})),
        ("llama/lora", dict(modules_to_save=[SLOW])),
        ("llama/lora", dict(layers_to_transform=[0], layers_pattern=[SLOW])),
        ("llama/ia3", dict(feedforward_modules=SLOW)),
    ],
)
def test_patterns_that_never_end(case, config, bases, tmp_path, monkeypatch):
    monkeypatch.setattr("minipeft.patterns.PATTERN_SECONDS", 0.1)
    field = [*config][-1]
    one_line(bases, case, tmp_path / "adapter", rf"{field}: .*expected a pattern that is matched in 0\.1 s", config)


@pytest.mark.parametrize("place", ["../x", "/etc", "..", "a\0b", "0/../../elsewhere", "x" * 5000])
def test_experts_stay_in_their_folder(place, bases, tmp_path):
    outside = copied("llama/lora", tmp_path / "elsewhere")
    folder = tmp_path / "adapter"
    with_one = {"adapters": {"only": place if place != "/etc" else str(outside)}}
    with pytest.raises(Bad, match=r"expert 'only' of the XLORA adapter is neither in .*, inside of the folder"):
        copied("llama/xlora", folder, with_one)
        (folder / "0").rename(folder / "zero")
        load_peft(bases["llama"], folder)


def test_experts_that_are_links_or_no_experts(bases, tmp_path):
    outside = copied("llama/lora", tmp_path / "elsewhere")
    for name, config, link, says in [
        ("loop", {"only": "loop"}, "loop", "is neither in"),
        ("away", {"only": "away"}, outside, "is neither in"),
        ("self", {".": "."}, None, "expected LORA, found XLORA"),
        ("same", {"0": "0", "1": "0/../0"}, None, "experts '0' and '1' of the XLORA adapter are in one folder"),
        ("many", {f"e{n}": "0" for n in range(10**5)}, None, "are in one folder"),
    ]:
        folder = copied("llama/xlora", tmp_path / name, {"adapters": config})
        if link is not None:
            (folder / "0").rename(folder / "zero")
            (folder / next(iter(config.values()))).symlink_to(link)
        with pytest.raises(Bad, match=says):
            load_peft(bases["llama"], folder)
    away = {"adapters": {str(n): f"/long/gone/{n}" for n in range(3)}}  # where they were when they were written
    assert load_peft(bases["llama"], copied("llama/xlora", tmp_path / "moved", away)).adapters


@pytest.mark.parametrize(("method", "settings"), [("lora", dict(r=1024)), ("prompt_tuning", dict(p=10_000)), ("prefix_tuning", dict(p=10_000))])  # fmt: skip
def test_large_adapters_that_are_honest_are_read(method, settings, bases, tmp_path):
    load_methods()
    adapted = attach(bases["llama"], METHODS[method](**settings))
    save_peft(adapted, tmp_path)
    again = load_peft(bases["llama"], tmp_path)
    assert {k: a.shape for k, a in again.theta.items()} == {k: a.shape for k, a in adapted.theta.items()}


def test_an_honest_configuration_of_many_modules_is_read(bases, tmp_path):
    """A key for every module of 80 layers, layers one by one, and a pattern as training scripts write it."""
    modules = [f"model.layers.{n}.{p}_proj" for n in range(80) for p in ("self_attn.q", "self_attn.v", "mlp.up", "x.y")]
    config = dict(
        rank_pattern=dict.fromkeys(modules, 3) | {r"model\.layers\.7\d.*(q|v)_proj": 5},
        alpha_pattern=dict.fromkeys(modules, 6.0),
        target_modules=[m for m in modules if "self_attn" in m],
    )
    began = time.process_time()
    adapted = load_peft(bases["llama"], copied("llama/lora", tmp_path / "adapter", config))
    assert {m.alpha for m in adapted.adapters[0].at.values()} == {6.0} and time.process_time() - began < 1
    written = r"(?:.*?(?:vision|language|model).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.x\.[\d]{1,}\.(?:q_proj))"
    assert load_peft(bases["llama"], copied("llama/lora", tmp_path / "regex", dict(target_modules=written))).adapters
