import dataclasses

import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.structured.glora import GLoRA

PATHS = [(ab, c, de) for ab in ("lora", "vector", "constant", "none") for c in ("lora", "vector", "none")
         for de in ("constant", "vector", "none") if (ab, c, de) != ("none",) * 3]  # fmt: skip


def drawn(method, out, in_, bias=True, moved=0.0):
    site = one_part.site(np.zeros((out, in_)))
    params = {"layers.0.attn.q.bias": np.zeros(out)} if bias else {}
    return one_part.arrays(method, dataclasses.replace(site, params=params), np.random.default_rng(0), moved=moved)


def of(paths, **more):
    return GLoRA(path_AB=paths[0], path_C=paths[1], path_DE=paths[2], **more)


@pytest.mark.parametrize("paths", PATHS, ids="-".join)
def test_the_numbers_that_a_path_has(paths):
    """2 r (out + in), r (in + 1), or vectors, or single numbers; of a linear without a bias A and B alone."""
    out, in_, r = 6, 10, 3
    weights = dict(lora=2 * r * (out + in_), vector=2 * out, constant=2, none=0)[paths[0]]
    column = dict(lora=r * (in_ + 1), vector=in_, none=0)[paths[1]]
    bias = dict(vector=2 * out, constant=2, none=0)[paths[2]]
    assert sum(a.size for a in drawn(of(paths, r=r), out, in_).values()) == weights + column + bias
    assert sum(a.size for a in drawn(of(paths, r=r), out, in_, bias=False).values()) == weights


def test_one_of_two_factors_starts_at_zero():
    a = drawn(GLoRA(r=40), 60, 50)
    assert not any(a[k].any() for k in ("Ad", "Bd", "Cd", "D", "E"))
    for k, bound in (("Au", 50**-0.5), ("Bu", 50**-0.5), ("Cu", 1)):
        assert 0.9 * bound < abs(a[k]).max() <= bound
    assert (a["Au"] != a["Bu"]).any()


def test_a_scales_element_by_element_and_b_shifts():
    """With A of rank 1, (1 + u vᵀ) ∘ W is W + diag(u) W diag(v): of full rank, where B alone has its own."""
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((6, 6)), np.eye(6)
    a = drawn(GLoRA(r=1), 6, 6, bias=False)
    u, v = rng.standard_normal((6, 1)), rng.standard_normal((1, 6))
    scaled = one_part.output(GLoRA(r=1), a | dict(Ad=u, Au=v), x, W).T - W
    np.testing.assert_allclose(scaled, np.diag(u[:, 0]) @ W @ np.diag(v[0]), rtol=0, atol=1e-14)
    assert np.linalg.matrix_rank(scaled) == 6
    shifted = one_part.output(GLoRA(r=1), a | dict(Bd=u, Bu=v), x, W).T - W
    assert np.linalg.matrix_rank(shifted, tol=1e-12) == 1


def test_c_moves_every_input_before_the_base():
    """b' − b = W C: the base computes x + C."""
    rng = np.random.default_rng(1)
    W, b, x, C = (rng.standard_normal(s) for s in ((5, 7), (5,), (3, 7), (7, 1)))
    method = GLoRA(path_AB="none", path_C="vector", path_DE="none")
    np.testing.assert_allclose(one_part.output(method, dict(C=C), x, W, b), (x + C[:, 0]) @ W.T + b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_layers_may_have_paths_of_their_own(family):
    """As the paper's search would choose them."""
    own = {"attn.v": dict(path_AB="vector", path_C="none")}
    adapted = attach(tiny.model(family), GLoRA(r=2), targets="attn.q attn.v", patterns=own)
    names = {k.rpartition(":")[2] for k in adapted.theta if "layers.0.attn.v" in k}
    assert names == ({"A", "B"} | ({"D", "E"} if family == "bert" else set()))
    assert any(k.endswith("attn.q.weight:Ad") for k in adapted.theta)


def test_a_rank_may_be_above_the_smaller_side():
    a = drawn(GLoRA(r=9), 4, 5)
    assert a["Ad"].shape == (4, 9) and a["Cd"].shape == (5, 9)


def test_bad_settings_are_named():
    with pytest.raises(Bad, match="one path must be another than 'none'"):
        GLoRA(path_AB="none", path_C="none", path_DE="none")
    with pytest.raises(Bad, match="path_C must be one of lora, vector, none"):
        GLoRA(path_C="constant")
    with pytest.raises(Bad, match="path_DE must be one of"):
        GLoRA(path_DE="lora")


@pytest.mark.hf
@pytest.mark.parametrize("paths", PATHS, ids="-".join)
@pytest.mark.parametrize(("out", "in_", "bias"), [(6, 10, True), (9, 5, False), (1, 4, True)])
def test_output_gradients_and_merged_weight_are_those_of_peft(paths, out, in_, bias):
    import peft

    method = of(paths, r=3)
    if not drawn(method, out, in_, bias):
        pytest.skip("nothing is trained there")
    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    b = b if bias else None
    fields = dict(config_A_B=paths[0], config_C=paths[1], config_D_E=paths[2])
    theirs = one_part.Peft(peft.GloraConfig(r=3, **fields, target_modules=["lin"]), W, b, x, c)
    shapes = {k: v.shape for k, v in drawn(method, out, in_, bias).items()}

    def name(k):
        return f"glora_{k[0]}.X{k[1:]}"

    assert {name(k) for k in shapes} == set(theirs.params)
    theta = {k: theirs.params[name(k)].reshape(s) for k, s in shapes.items()}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    for k, g in grads.items():
        want = theirs.grads[name(k)].reshape(shapes[k])
        np.testing.assert_allclose(g, want, rtol=0, atol=1e-12 * max(abs(want).max(), 1))
    layer = theirs.model.merge_and_unload().lin
    run = one_part.run(method, theta, W, b)
    np.testing.assert_allclose(run.param("layers.0.attn.q.weight"), layer.weight.detach(), rtol=0, atol=1e-13)
    if bias:
        np.testing.assert_allclose(run.param("layers.0.attn.q.bias"), layer.bias.detach(), rtol=0, atol=1e-13)


@pytest.mark.hf
def test_starts_are_those_of_peft():
    import peft
    import torch

    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(50, 60)), peft.GloraConfig(r=40, target_modules=["0"])
    )
    ours = drawn(GLoRA(r=40), 60, 50)
    found = {k.split("glora_")[1].replace(".default", ""): p for k, p in model.named_parameters() if "glora" in k}
    assert len(found) == len(ours)
    for k, a in ours.items():
        p = found[f"{k[0]}.X{k[1:]}"].detach()
        assert tuple(p.shape) == a.shape and abs(float(p.abs().max()) - abs(a).max()) <= 0.1 * abs(a).max()


@pytest.mark.hf
def test_zeros_of_a_path_are_passed_over_and_others_refused(tmp_path):
    """PEFT writes paths that are none as zeros, reads a file without them, and would compute with what stands there."""
    import shutil
    from pathlib import Path

    from safetensors.numpy import load_file, save_file

    from minipeft.checkpoints import load
    from minipeft.interop.peft.reading import load_peft
    from minipeft.interop.peft.writing import save_peft

    data = Path(__file__).parents[2] / "data" / "peft" / "llama"
    model, folder = load(data / "base", np.float64), data / "glora-weight" / "adapter"
    full = load_file(folder / "adapter_model.safetensors")
    short = {k: v for k, v in full.items() if not k.endswith(".zeros")}
    assert set(short) < set(full) and not any(full[k].any() for k in full.keys() - short.keys())
    for part in (full, short):
        shutil.copy(folder / "adapter_config.json", tmp_path)
        save_file(part, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
        adapted = load_peft(model, tmp_path)
        assert len(adapted.theta) == len(short)
        save_peft(adapted, tmp_path)
        assert load_file(tmp_path / "adapter_model.safetensors").keys() == part.keys()
    key = min(full.keys() - short.keys())
    save_file(full | {key: full[key] + 1}, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Bad, match=r"unexpected tensor .*glora_.\.zeros"):
        load_peft(model, tmp_path)


def test_a_target_without_a_bias_may_have_nothing(tmp_path):
    """Where no path is of the weight: PEFT names the target all the same, and writes zeros."""
    from minipeft.checkpoints.files import read_json, write_json
    from minipeft.interop.peft.reading import load_peft
    from minipeft.interop.peft.writing import save_peft

    model = tiny.model("gpt2")
    model = dataclasses.replace(model, arch=dataclasses.replace(model.arch, biased=("up", "down")))
    bare = [n for n in model.params if n.endswith("attn.o.bias")]
    model = dataclasses.replace(model, params={k: v for k, v in model.params.items() if k not in bare})
    one = attach(model, GLoRA(path_AB="none"), targets="attn.o.weight mlp.up.weight")
    assert all("mlp.up" in name for name in one.adapters[0].arrays)
    save_peft(one, tmp_path)
    config = read_json(tmp_path / "adapter_config.json")
    write_json(tmp_path / "adapter_config.json", config | dict(target_modules=["attn.c_proj", "c_fc"]))
    assert load_peft(model, tmp_path).theta.keys() == one.theta.keys()
    write_json(tmp_path / "adapter_config.json", config | dict(target_modules=["c_proj", "c_fc"]))
    with pytest.raises(Bad, match=r"target modules have no tensors, the first .*mlp\.c_proj"):
        load_peft(model, tmp_path)
