import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors
from minipeft.conformance import tiny
from minipeft.conformance.acting import one
from minipeft.conformance.places import ARCH
from minipeft.engine import ops, value_and_grad
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft, to_peft_tensors
from minipeft.merging import merge
from minipeft.methods.selective.ln_tuning import LNTuning
from minipeft.model.blocks import norm

NAME = "layers.0.attn.norm"
D = 6


def drawn(kind, seed=0):
    """A norm, what takes its place, an input and a cotangent."""
    rng = np.random.default_rng(seed)
    biased = kind == "layer"
    params = {f"{NAME}.weight": rng.standard_normal(D)} | ({f"{NAME}.bias": rng.standard_normal(D)} if biased else {})
    theta = dict(gamma=rng.standard_normal(D)) | (dict(beta=rng.standard_normal(D)) if biased else {})
    return SimpleNamespace(
        params=params, theta=theta, x=rng.standard_normal((2, 3, D)), c=rng.standard_normal((2, 3, D)),
        arch=dataclasses.replace(ARCH, norm=kind, d=D),
    )  # fmt: skip


def computed(t, theta):
    return norm(one(LNTuning(), theta, t.params, (f"{NAME}.weight",), t.arch), NAME, t.x)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_norm_has_the_trained_weight_and_bias_number_by_number(kind):
    """The recorded cases have no norm: this is its closed form."""
    t = drawn(kind)
    y = computed(t, t.theta)
    for i in range(2):
        for j in range(3):
            x = [float(v) for v in t.x[i, j]]
            mean = sum(x) / D if kind == "layer" else 0.0
            deviation = (sum((v - mean) ** 2 for v in x) / D + t.arch.eps) ** 0.5
            for k in range(D):
                beta = t.theta["beta"][k] if kind == "layer" else 0.0
                assert abs(y[i, j, k] - (t.theta["gamma"][k] * (x[k] - mean) / deviation + beta)) < 1e-14


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "vit"])
def test_every_norm_begins_as_it_is_and_nothing_else_is_trained(family):
    model = tiny.model(family)
    adapter = attach(model, LNTuning()).adapters[0]
    norms = {k: v for k, v in model.params.items() if ".norm." in f".{k}"}
    named = {f"{s}:gamma" if s.endswith("weight") else f"{s[:-4]}weight:beta": v for s, v in norms.items()}
    assert adapter.arrays.keys() == adapter.trained == named.keys() and len(named) >= 5
    assert all(np.array_equal(adapter.arrays[k], v) and adapter.arrays[k] is not v for k, v in named.items())


def test_the_norms_of_the_blocks_alone():
    adapter = attach(tiny.model("llama"), LNTuning(targets="attn.norm mlp.norm")).adapters[0]
    assert set(adapter.at) == {f"layers.{n}.{part}.norm.weight" for n in (0, 1) for part in ("attn", "mlp")}


def moved(adapted, seed=0):
    rng = np.random.default_rng(seed)
    return adapted.replace({k: v + 0.2 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def test_values_replace_those_of_whatever_base_and_merge_as_they_are():
    model = tiny.model("bert")
    adapted = moved(attach(model, LNTuning()))
    arrays, plain = adapted.adapters[0].arrays, merge(adapted)
    assert np.array_equal(plain.params["embed.norm.bias"], arrays["embed.norm.weight:beta"])
    assert np.array_equal(plain.params["embed.norm.weight"], arrays["embed.norm.weight:gamma"])
    assert plain.params.keys() == model.params.keys()
    assert merge(moved(attach(tiny.model("llama"), LNTuning()))).params.keys() == tiny.model("llama").params.keys()
    other = dataclasses.replace(model, params={k: v * 2 if ".norm." in f".{k}" else v for k, v in model.params.items()})
    given = tiny.example(model)
    assert np.array_equal(adapted.logits(given), Adapted(other, adapted.adapters).logits(given))


def test_two_with_weights_are_averaged_and_without_the_last_counts():
    model = tiny.model("bert")
    both = attach(attach(model, LNTuning(), name="a"), LNTuning(), name="b")
    both = moved(both)
    a, b = (x.arrays for x in both.adapters)
    for end, name in (("weight", "gamma"), ("bias", "beta")):
        key = f"embed.norm.weight:{name}"
        mean = merge(both.using(a=0.5, b=0.5)).params[f"embed.norm.{end}"]
        np.testing.assert_allclose(mean, (a[key] + b[key]) / 2, rtol=0, atol=1e-14)
        assert np.array_equal(merge(both.using("a", "b")).params[f"embed.norm.{end}"], b[key])


def test_refuses_what_is_no_norm():
    with pytest.raises(Bad, match=r"ln_tuning: expected norms, found layers.0.attn.q.weight, of kind linear"):
        attach(tiny.model("llama"), LNTuning(targets="attn.q.weight"))


# --- files of PEFT ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(request, tmp_path):
    """An adapter on a recorded base, and its folder."""
    base = load(request.config.rootpath / "tests" / "data" / "peft" / "bert-cls" / "base", np.float64)
    adapted = moved(attach(base, LNTuning(), train_whole=["classifier"]))
    save_peft(adapted, tmp_path)
    return adapted, tmp_path


def test_files_of_peft_hold_both_under_the_norm_s_name(saved):
    adapted, folder = saved
    tensors = read_tensors(folder / "adapter_model.safetensors")
    start = "base_model.model.bert.embeddings.LayerNorm.ln_tuning_layers"
    assert np.array_equal(tensors[f"{start}.weight"], adapted.adapters[0].arrays["embed.norm.weight:gamma"])
    assert np.array_equal(tensors[f"{start}.bias"], adapted.adapters[0].arrays["embed.norm.weight:beta"])
    again = load_peft(adapted.model, folder)
    old, new = adapted.adapters[0].arrays, again.adapters[0].arrays
    assert old.keys() == new.keys() and all(np.array_equal(old[k], new[k]) for k in old)
    grads = to_peft_tensors(again, again.adapters[0], new)
    assert grads.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["LayerNorm", "classifier"], None),
        (
            ["output.LayerNorm"],
            r"1 modules have tensors and are no target_modules, the first bert.embeddings.LayerNorm",
        ),
        (r".*embeddings\.LayerNorm", r"4 modules have tensors and are no target_modules"),
    ],
)
def test_target_modules_are_compared_with_the_tensors(saved, targets, says):
    adapted, folder = saved
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(target_modules=targets)))
    if says is None:
        assert load_peft(adapted.model, folder).adapters[0].at.keys() == adapted.adapters[0].at.keys()
        return
    with pytest.raises(Bad, match=says):
        load_peft(adapted.model, folder)


def test_a_target_module_without_tensors_is_named(saved):
    adapted, folder = saved
    few = attach(adapted.model, LNTuning(targets="layers.0.attn.norm"), train_whole=["classifier"])
    save_peft(few, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(target_modules=["LayerNorm"])))
    with pytest.raises(Bad, match=r"target modules have no tensors, the first bert\.embeddings"):
        load_peft(adapted.model, folder)


@pytest.mark.hf
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_output_gradients_and_merged_norm_are_those_of_peft(kind):
    import peft
    import torch

    t = drawn(kind)
    names = dict(gamma="weight", beta="bias")

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = (torch.nn.LayerNorm if kind == "layer" else torch.nn.RMSNorm)(D, eps=t.arch.eps)

        def forward(self, x):
            return self.norm(x)

    model = One().double()
    with torch.no_grad():
        for name, p in model.norm.named_parameters():
            p.copy_(torch.tensor(t.params[f"{NAME}.{name}"]))
    model = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["norm"]))
    layer = model.base_model.model.norm.ln_tuning_layers["default"]
    fresh, _ = _ours(t, {k: t.params[f"{NAME}.{names[k]}"] for k in t.theta})
    np.testing.assert_allclose(fresh, model(torch.tensor(t.x)).detach().numpy(), rtol=0, atol=1e-14)
    with torch.no_grad():
        for ours, a in t.theta.items():
            getattr(layer, names[ours]).copy_(torch.tensor(a))
    trained = [k for k, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == len(t.theta) and all("ln_tuning_layers" in k for k in trained)
    theirs = model(torch.tensor(t.x))
    (theirs * torch.tensor(t.c)).sum().backward()
    y, grads = _ours(t, t.theta)
    np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=0, atol=1e-14)
    for ours in t.theta:
        np.testing.assert_allclose(grads[ours], getattr(layer, names[ours]).grad.numpy(), rtol=0, atol=1e-13)
    merged = model.merge_and_unload().norm
    run = one(LNTuning(), t.theta, t.params, (f"{NAME}.weight",), t.arch)
    for ours in t.theta:
        theirs = getattr(merged, names[ours]).detach().numpy()
        assert np.array_equal(run.param(f"{NAME}.{names[ours]}"), theirs)


def _ours(t, theta):
    """The output, and the gradients of sum(y · c)."""

    def f(theta):
        y = computed(t, theta)
        return ops.sum(y * t.c), y

    (_, y), grads = value_and_grad(f)(theta)
    return getattr(y, "value", y), grads
