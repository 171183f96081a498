import dataclasses
import itertools
import json
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import one_each

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import files, load, with_head
from minipeft.checkpoints.files import read_json, read_tensors, write_json, write_tensors
from minipeft.checkpoints.native import encode, load_adapter, save_adapter, seal, trained_in
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.selective.bitfit import BitFit
from minipeft.settings import small

PEFT = Path(__file__).parents[1] / "data" / "peft" / "llama"

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))
BASES = Path(__file__).parents[1] / "data" / "bases"
Q = "layers.0.attn.q.weight"


def moved(adapted, seed=0):
    rng = np.random.default_rng(seed)
    theta = adapted.theta
    return adapted.replace({k: x + (0.1 * rng.standard_normal(x.shape)).astype(x.dtype) for k, x in theta.items()})


@pytest.mark.parametrize(
    ("name", "dtype"), one_each(itertools.product(SHIPPED, [np.float32, np.float64]), itemgetter(0))
)
def test_every_method_comes_back_bit_for_bit(name, dtype, tmp_path):
    family = "bert" if name == "bitfit" else "llama"
    model = tiny.model(family, dtype)
    method = small(METHODS[name], model.arch)
    batch = tiny.example(model, tasks=getattr(method, "n_tasks", 1))
    saved = moved(attach(model, method, data=[batch], name="mine"))
    held = {k: (np.array(v), v.dtype) for k, v in saved.adapters[0].arrays.items()}
    save_adapter(saved, tmp_path)
    loaded = load_adapter(tiny.model(family, dtype), tmp_path)  # the plain base, as read from its files
    a, b = saved.adapters[0], loaded.adapters[0]
    assert list(b.arrays) == list(held) and b.trained == a.trained and b.name == "mine"
    for k, (v, kind) in held.items():
        assert b.arrays[k].dtype == kind and b.arrays[k].shape == v.shape and b.arrays[k].tobytes() == v.tobytes()
    assert list(b.at.items()) == list(a.at.items()) and b.method == method and b.options == a.options
    assert np.array_equal(saved.logits(batch), loaded.logits(batch))
    for k in b.stored:
        with pytest.raises(ValueError, match="read-only"):
            b.arrays[k][...] = 0


@settings(max_examples=10)
@given(
    st.sampled_from(sorted(tiny.ARCHS)), st.integers(1, 5), st.floats(0.1, 9), st.booleans(),
    st.sampled_from(["none", "all"]), st.integers(1, 4),
)  # fmt: skip
def test_settings_come_back(tmp_path_factory, family, r, alpha, rslora, bias, other):
    folder = tmp_path_factory.mktemp("adapter")
    model = tiny.model(family)
    patterns = {"layers.0.*": {"r": other, "dropout": 0.1}}
    method = LoRA(r=r, alpha=alpha, rslora=rslora)
    saved = attach(model, method, targets="all-linear", patterns=patterns, bias=bias, train_whole=["final.norm"][: family != "bert"])  # fmt: skip
    save_adapter(saved, folder)
    loaded = load_adapter(model, folder).adapters[0]
    assert loaded.method == method and dict(loaded.at) == dict(saved.adapters[0].at)
    assert loaded.at["layers.0.mlp.up.weight"] == dataclasses.replace(method, r=other, dropout=0.1)
    assert loaded.options == saved.adapters[0].options


def test_sites_keep_their_order_beyond_the_tenth_layer(tmp_path):
    """Methods may count their sites, so "layers.10" must not come before "layers.2"."""
    arch = dataclasses.replace(tiny.ARCHS["llama"], layers=12)
    small = tiny.model()
    params = {n: small.params[n] for n in small.params if "layers" not in n}
    layers = {f"layers.{i}.{n.removeprefix('layers.0.')}": W for i in range(12) for n, W in small.params.items() if n.startswith("layers.0.")}  # fmt: skip
    model = dataclasses.replace(small, arch=arch, params=params | layers)
    saved = attach(model, LoRA(), targets="q_proj")
    save_adapter(saved, tmp_path)
    assert list(load_adapter(model, tmp_path).adapters[0].at) == [f"layers.{i}.attn.q.weight" for i in range(12)]


def test_one_of_several_adapters(tmp_path):
    model = tiny.model("bert")
    both = attach(attach(model, LoRA(), name="one"), BitFit(), name="two")
    with pytest.raises(Bad, match="expected one adapter or a name, found 2: one, two"):
        save_adapter(both, tmp_path)
    with pytest.raises(Bad, match="adapter 'tow' is not attached"):
        save_adapter(both, tmp_path, "tow")
    assert not list(tmp_path.iterdir())
    save_adapter(both, tmp_path, "two")
    loaded = load_adapter(attach(model, LoRA(), name="one"), tmp_path)
    assert [a.method.name for a in loaded.adapters] == ["lora", "bitfit"]
    with pytest.raises(Bad, match="an adapter named 'two' is attached already"):
        load_adapter(loaded, tmp_path)


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        save_adapter(attach(tiny.model(), LoRA()), tmp_path / folder)
    for file in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# --- heads ----------------------------------------------------------------------------------------------------------


def test_an_adapter_fits_its_body_under_another_head(tmp_path):
    model = tiny.model()
    saved = moved(attach(model, LoRA(r=3), targets="all-linear"))
    save_adapter(saved, tmp_path)
    given = tiny.example(model, padding="none")
    for head in ("none", "classify", "tokens"):
        other = with_head(model, head, 3 if head != "none" else 0, seed=4)
        loaded = load_adapter(other, tmp_path)
        assert loaded.model.arch.head == head  # a head that the adapter does not bring stays as it is
        hidden = loaded.forward(given.having(labels=None)).hidden
        np.testing.assert_array_equal(hidden, saved.forward(given).hidden)
    with pytest.raises(Bad, match="another base"):
        load_adapter(with_head(tiny.model(seed=1), "none"), tmp_path)


def test_an_adapter_of_a_bare_body_fits_under_a_language_model(tmp_path):
    model = tiny.model()
    save_adapter(moved(attach(with_head(model, "none"), LoRA(r=3))), tmp_path)
    loaded = load_adapter(model, tmp_path)
    assert loaded.model.digest() == model.digest() and len(loaded.adapters) == 1


def test_a_head_that_is_not_there_cannot_be_adapted(tmp_path):
    model = tiny.model()
    save_adapter(moved(attach(model, LoRA(r=3), targets="lm_head")), tmp_path)
    says = r"site 'head\.weight' is not in this model with the head 'none'; it was trained with 'lm'"
    with pytest.raises(Bad, match=says):
        load_adapter(with_head(model, "none"), tmp_path)


def test_an_adapter_brings_the_dense_layer_that_was_drawn_for_its_classifier(tmp_path):
    """A base without a pooler: another draw must not give another model."""
    base = load(BASES / "bert-mlm", np.float64)
    model = with_head(base, "classify", 3, seed=7)
    assert model.drawn == {"pooler.weight", "pooler.bias", "score.weight", "score.bias"}
    saved = moved(attach(model, LoRA(r=2), train_whole=sorted(model.drawn)))
    save_adapter(saved, tmp_path, classes=["a", "b", "c"])
    loaded, given = load_adapter(base, tmp_path), tiny.example(model, t=5)
    np.testing.assert_array_equal(loaded.logits(given), saved.logits(given))
    assert loaded.adapters[0].options["classes"] == ["a", "b", "c"]


@pytest.mark.parametrize("held", ["float32", "float64", "bfloat16"])
def test_it_says_in_what_type_its_base_was_held(held, tmp_path):
    save_adapter(attach(tiny.model(dtype=held), LoRA(r=3)), tmp_path)
    assert trained_in(tmp_path) == held
    other = "float32" if held != "float32" else "float64"
    with pytest.raises(
        Bad, match=rf"another base .*, held in {held}\); this base is llama, digest \w+, held in {other}"
    ):
        load_adapter(tiny.model(dtype=other), tmp_path)


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    save_adapter(moved(attach(tiny.model(), LoRA(r=3), targets="q_proj")), tmp_path)
    return tmp_path


def test_another_base(folder):
    with pytest.raises(Bad, match=r"this adapter belongs to another base \(llama, digest \w{12}\); this base is llama"):
        load_adapter(tiny.model(seed=1), folder)
    with pytest.raises(Bad, match="this base is gpt2"):
        load_adapter(tiny.model("gpt2"), folder)
    with pytest.raises(Bad, match="another base"):
        load_adapter(tiny.model(dtype=np.float32), folder)


def test_one_changed_weight_is_another_base(folder):
    model = tiny.model()
    W = model.params["final.norm.weight"].copy()
    W[3] = np.nextafter(W[3], 2)
    with pytest.raises(Bad, match="another base"):
        load_adapter(dataclasses.replace(model, params={**model.params, "final.norm.weight": W}), folder)


def test_any_base_of_the_same_shapes(folder):
    other, batch = tiny.model(seed=1), tiny.example(tiny.model())
    loaded = load_adapter(other, folder, any_base=True)
    assert abs(loaded.logits(batch) - Adapted(other).logits(batch)).max() > 1e-3
    with pytest.raises(Bad, match=r"site 'layers.0.attn.q.weight' is not in this model"):
        load_adapter(tiny.model("gpt2"), folder, any_base=True)
    arch = dataclasses.replace(other.arch, heads=3)
    halved = {n: W[:12] if n.endswith("attn.q.weight") else W for n, W in other.params.items()}
    with pytest.raises(Bad, match=r"site 'layers.0.attn.q.weight': expected shape \(24, 24\), found \(12, 24\)"):
        load_adapter(dataclasses.replace(other, arch=arch, params=halved), folder, any_base=True)


def altered(folder, change=lambda arrays: None, said=lambda about: None, digest_too=True):
    """The files of an adapter, changed; by somebody who knows of the digest, or, in format 2, has none to mind."""
    arrays, about = dict(read_tensors(folder / "adapter.safetensors")), read_json(folder / "adapter.json")
    change(arrays)
    said(about)
    if digest_too:
        about["digest"] = seal(about, arrays)
    else:
        about |= {"format": 2}
        del about["digest"]
    write_tensors(folder / "adapter.safetensors", arrays)
    write_json(folder / "adapter.json", about)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop(f"{Q}:A"), rf"array '{Q}:A' is missing"),
        (lambda a: a.update({f"{Q}:C": a[f"{Q}:A"]}), f"unexpected array '{Q}:C'"),
        (lambda a: a.update({f"{Q}:AA": a.pop(f"{Q}:A")}), rf"unexpected array '{Q}:AA' \(did you mean {Q}:A\?\)"),
        (lambda a: a.update({f"{Q}:A": a[f"{Q}:A"].T}), rf"{Q}:A: expected shape \(3, 24\), found \(24, 3\)"),
        (lambda a: a.clear(), "is missing"),
    ],
)
def test_arrays_that_do_not_fit(folder, change, says):
    arrays = dict(read_tensors(folder / "adapter.safetensors"))
    change(arrays)
    write_tensors(folder / "adapter.safetensors", arrays)
    with pytest.raises(
        Bad, match="are not of one save: it was interrupted, or one of them changed; save the adapter again"
    ):
        load_adapter(tiny.model(), folder)
    altered(folder)
    with pytest.raises(Bad, match=says) as caught:
        load_adapter(tiny.model(), folder)
    assert "\n" not in str(caught.value)


def put(key, i, x):
    """A change of one number."""

    def change(arrays):
        arrays[key] = arrays[key].copy()
        arrays[key].reshape(-1)[i] = x

    return change


def typed(key, dtype):
    return lambda arrays: arrays.update({key: arrays[key].astype(dtype)})


def sized(key, *shape):
    """The array in another shape, in both files."""

    def change(arrays):
        arrays[key] = np.zeros(shape)

    def said(about):
        next(row for row in about["arrays"] if row[0] == key)[1] = list(shape)

    return change, said


def with_setting(name, x):
    def said(about):
        for m in (about["method"], *about["methods"]):
            m[name] = x

    return said


def without(key):
    def said(about):
        about["arrays"] = [row for row in about["arrays"] if row[0] != key]

    return lambda arrays: arrays.pop(key), said


def with_array(key):
    return lambda arrays: arrays.update({key: np.zeros(2)}), lambda about: about["arrays"].append([key, [2], True])


def turned(key):
    def said(about):
        row = next(row for row in about["arrays"] if row[0] == key)
        row[2] = not row[2]

    return said


def at(row):
    return lambda about: about["at"].append(row)


SAME = lambda it: None


@pytest.mark.parametrize("digest_too", [True, False])
@pytest.mark.parametrize(
    ("method", "change", "said", "says"),
    [
        ("lora", SAME, with_setting("r", 400), rf"{Q}:A of lora has shape \(400, 24\) under its settings, found \(\d, 24\)"),
        ("lora", *sized(f"{Q}:A", 9, 24), rf"{Q}:A of lora has shape \(\d, 24\) under its settings, found \(9, 24\)"),
        ("prefix_tuning", SAME, with_setting("p", 60000), r"of prefix_tuning has shape .*60000"),
        ("lora", put(f"{Q}:A", 3, np.nan), SAME, f"{Q}:A: has NaN or infinite values"),
        ("lora", put(f"{Q}:B", 3, np.inf), SAME, f"{Q}:B: has NaN or infinite values"),
        ("lora", typed(f"{Q}:B", np.int64), SAME, f"{Q}:B: expected floating-point numbers, found int64"),
        ("lora", SAME, turned(f"{Q}:B"), f"{Q}:B of lora must be trained, found the other"),
        ("vera", SAME, turned(":A"), ":A of vera must be stored, found the other"),
        ("lora", SAME, turned(f"{Q}:B"), f"{Q}:B of lora must be trained"),
        ("lora", *without(f"{Q}:B"), f"lora has an array {Q}:B under its settings, which is missing"),
        ("lora", *with_array(f"{Q}:C"), f"{Q}:C is no array of its methods under their settings"),
        ("lora", *with_array(":C"), ":C is no array of its methods under their settings"),
        ("shira", put(f"{Q}:rows", 5, -1), SAME, f"{Q}:rows: expected whole numbers from 0 to 23, found -1"),
        ("shira", put(f"{Q}:cols", 5, 24), SAME, f"{Q}:cols: expected whole numbers from 0 to 23, found 24"),
        ("shira", typed(f"{Q}:rows", np.float64), SAME, f"{Q}:rows: expected whole numbers from 0 to 23, found float64"),
        ("fourierft", put(f"{Q}:rows", 0, 1 << 40), SAME, f"{Q}:rows: expected whole numbers from 0 to 23, found {1 << 40}"),
        ("fourierft", lambda a: (put(f"{Q}:rows", [0, 4], 3)(a), put(f"{Q}:cols", [0, 4], 7)(a)), SAME,
         rf"{Q}:cols: with rows it names \(3, 7\) twice"),
        ("supertuning", put(f"{Q}:p", [0, 4], 77), SAME, f"{Q}:p: it names 77 twice"),
        ("trainable_tokens", SAME, with_setting("tokens", [2, 3, 999]), r"tokens must lie in 0 … 49, found 999"),
        ("lora", SAME, at(["final.norm.weight", [24], 0]), "lora: expected linears and lookups, found final.norm.weight, of kind norm"),
        ("lora", SAME, at([Q, [24, 24], 0]), "its at name one twice"),
        ("lora", SAME, at(["layers.0.attn.k.weight", [24, 24], 1]), "its at name others than its 1 methods"),
        ("lora", SAME, at(["layers.0.attn.k.weight", [24, 24], -1]), "its at name others than its 1 methods"),
        ("lora", SAME, lambda about: about["method"].update(encode(METHODS["lokr"]())), "cannot be read: .*no site has its method lokr|has no setting"),
        ("lora", SAME, lambda about: about.update(name="a/b"), "its name is 'a/b'"),
    ],
)  # fmt: skip
def test_what_the_methods_do_not_declare(method, change, said, says, digest_too, tmp_path):
    save_adapter(moved(attach(tiny.model(), small(METHODS[method], tiny.ARCHS["llama"]))), tmp_path)
    load_adapter(tiny.model(), tmp_path)
    altered(tmp_path, change, said, digest_too)
    with pytest.raises(Bad, match=says) as caught:
        load_adapter(tiny.model(), tmp_path)
    assert "\n" not in str(caught.value)


def test_the_arrays_of_one_expert_are_all_there_or_none(tmp_path):
    """An expert may leave a site alone."""
    save_adapter(attach(tiny.model(), small(METHODS["x_lora"], tiny.ARCHS["llama"])), tmp_path)
    drop, unsaid = without(f"{Q}:A1")
    altered(tmp_path, drop, unsaid)
    with pytest.raises(Bad, match=f"array {Q}:A1 is missing"):
        load_adapter(tiny.model(), tmp_path)
    drop, unsaid = without(f"{Q}:B1")
    altered(tmp_path, drop, unsaid)
    assert f"{Q}:A1" not in load_adapter(tiny.model(), tmp_path).adapters[0].arrays


def test_a_head_has_as_many_labels_as_the_file_brings(tmp_path):
    """Before one of that size is made."""
    model = with_head(tiny.model(), "classify", 3)
    save_adapter(attach(model, LoRA(r=2), train_whole=["score"]), tmp_path)
    assert load_adapter(tiny.model(), tmp_path).model.arch.labels == 3
    altered(tmp_path, said=lambda about: about.update(head=["classify", 10**12]))
    with pytest.raises(Bad, match=r"its head has 1000000000000 labels, and adapter\.safetensors has no such head"):
        load_adapter(tiny.model(), tmp_path)


@pytest.mark.parametrize("after", ["adapter.safetensors", "adapter.json"])
def test_a_save_that_is_killed_between_its_files_is_noticed(after, folder, monkeypatch):
    before, other = tiny.model(), moved(attach(tiny.model(), LoRA(r=3), targets="q_proj"), seed=1)
    write = files.write_bytes

    def dying(path, data):
        write(path, data)
        if path.name == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_bytes", dying)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(other, folder)
    monkeypatch.undo()
    if after == "adapter.json":
        assert np.array_equal(load_adapter(before, folder).theta[f"default/{Q}:A"], other.theta[f"default/{Q}:A"])
    else:
        with pytest.raises(Bad, match="are not of one save"):
            load_adapter(before, folder)
    save_adapter(other, folder)
    load_adapter(before, folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a["method"].update(method="lroa"), r"method 'lroa' is unknown \(did you mean lora"),
        (lambda a: a["methods"][0].update(method="dro"), "method 'dro' is unknown"),
        (lambda a: a["method"].update(rr=3), r"lora has no setting 'rr' \(did you mean r, rslora\?\)"),
        (lambda a: a["method"].update(r=0), "r must be at least 1"),
        (lambda a: a["method"].update(r="many"), "r must be an integer, found 'many'"),
        (lambda a: a.update(format=1), "expected an adapter of format 3 or 2, found 1"),
        (lambda a: a.update(at=[["layers.9.attn.q.weight", [24, 24], 0]], arrays=[]), "'layers.9.attn.q.weight' is not in this model"),
        (lambda a: a.update(at=[]), "is at no site that it names"),
        (lambda a: a.update(at=""), "its at are no list"),
    ],
)  # fmt: skip
def test_descriptions_that_do_not_fit(folder, change, says):
    about = read_json(folder / "adapter.json")
    change(about)
    if "digest" in about:
        about["digest"] = seal(about, read_tensors(folder / "adapter.safetensors"))
    write_json(folder / "adapter.json", about)
    with pytest.raises(Bad, match=says) as caught:
        load_adapter(tiny.model(), folder)
    assert "\n" not in str(caught.value)


JUNK = st.sampled_from([None, 0, -1, 1.5, True, "", "lora", [], [[]], [1, 2], [["x", [1], 0]], {}, {"method": "lora"}, {"method": []}])  # fmt: skip


@given(
    st.sampled_from(
        ["format", "name", "method", "methods", "at", "arrays", "options", "base", "family", "head", "brought"]
    ),
    JUNK,
)
def test_no_description_gets_anything_but_bad_out_of_it(tmp_path_factory, key, junk):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(attach(tiny.model(), LoRA(r=3), targets="q_proj"), folder)
    about = read_json(folder / "adapter.json")
    for change in (about | {key: junk}, {k: v for k, v in about.items() if k != key}):
        write_json(folder / "adapter.json", change)
        try:
            loaded = load_adapter(tiny.model(), folder)
        except Bad as why:
            assert "\n" not in str(why)
        else:
            assert key in ("name", "family", "options", "method") and len(loaded.adapters) == 1


def test_files_that_are_missing_or_broken(folder, tmp_path):
    (folder / "adapter.json").write_text(json.dumps([]))
    with pytest.raises(Bad, match="expected an adapter of format 3 or 2, found list"):
        load_adapter(tiny.model(), folder)
    with pytest.raises(Bad, match=r"adapter\.json: no such file"):
        load_adapter(tiny.model(), tmp_path / "nowhere")


def test_a_truncated_file(folder):
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(Bad, match="truncated"):
        load_adapter(tiny.model(), folder)


@pytest.mark.parametrize("dtype", [np.float64, "bfloat16"])
@pytest.mark.parametrize("case", ["lora-resized", "lora-embedding-resized", "lora-trainable-tokens-resized"])
def test_what_an_adapter_brought_of_its_base_goes_with_it(tmp_path, case, dtype):
    """A resized vocabulary's table and output matrix, read from a file of PEFT's, on the base as it was."""
    base = load(PEFT / "base", dtype)
    adapted = load_peft(base, PEFT / case / "adapter")
    assert adapted.model.arch.vocab != base.arch.vocab
    save_adapter(adapted, tmp_path)
    again = load_adapter(load(PEFT / "base", dtype), tmp_path)
    assert again.model.digest() == adapted.model.digest()
    given = tiny.example(adapted.model)
    np.testing.assert_array_equal(again.logits(given), adapted.logits(given))
    other = load(PEFT / "base", dtype)
    moved = {**other.params, "layers.0.attn.k.weight": other.params["layers.1.attn.k.weight"]}
    with pytest.raises(Bad, match="belongs to another base"):
        load_adapter(dataclasses.replace(other, params=moved), tmp_path)


def test_what_an_adapter_brought_must_be_there_and_fit(tmp_path):
    base = load(PEFT / "base")
    save_adapter(load_peft(base, PEFT / "lora-resized" / "adapter"), tmp_path)
    whole = read_tensors(tmp_path / "adapter.safetensors")
    key = next(k for k in whole if k.startswith("base:"))
    for change, says in (
        (lambda a: a.pop(key), "is missing"),
        (lambda a: a.update({key: a[key][:, :-1]}), "expected shape"),
        (lambda a: a.update({key: a[key] * np.nan}), "expected finite numbers"),
    ):
        arrays = dict(whole)
        change(arrays)
        write_tensors(tmp_path / "adapter.safetensors", arrays)
        altered(tmp_path)
        with pytest.raises(Bad, match=says):
            load_adapter(base, tmp_path)
