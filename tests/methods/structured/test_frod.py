import json
import shutil
from pathlib import Path

import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.conformance import tiny
from minipeft.drawing import Facts, draw_all
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.method import weight_of
from minipeft.methods.structured.frod import FRoD, basis, places

ROOT = Path(__file__).parents[2] / "data" / "peft" / "llama"


def started(method, W):
    site = one_part.site(W)
    return {k: np.asarray(a) for k, (a, _) in draw_all(method, [site], np.random.default_rng(0))[site.name][1].items()}


@pytest.mark.parametrize("shape", [(14, 9), (9, 9), (5, 9)])
def test_before_training_it_is_the_weight_as_directions_of_length_one(shape):
    W = np.random.default_rng(0).standard_normal(shape)
    a = started(FRoD(rate=0.1), W)
    np.testing.assert_allclose((a["U"] * a["lam"]) @ a["V"].T, W, rtol=0, atol=1e-13)
    np.testing.assert_allclose(weight_of(FRoD(rate=0.1), W, a), W, rtol=0, atol=1e-13)
    lengths = np.linalg.norm(a["U"], axis=0)
    there = min(shape) if shape[0] < 9 else 9
    np.testing.assert_allclose(np.sort(lengths), [0.0] * (9 - there) + [1.0] * there, rtol=0, atol=1e-14)
    assert (lengths == 0).sum() == 9 - there and not a["s"].any() and (a["lam"][lengths > 0] > 0).all()


def test_a_length_and_a_place_are_one_rank_each():
    W = np.random.default_rng(0).standard_normal((7, 6))
    a = started(FRoD(rate=0.1), W)
    longer, s = a["lam"].copy(), np.zeros(3)
    longer[4] += 2.0
    s[1] = 3.0
    i, j = a["rows"][1], a["cols"][1]
    want = 2 * np.outer(a["U"][:, 4], a["V"][:, 4]) + 3 * np.outer(a["U"][:, i], a["V"][:, j])
    np.testing.assert_allclose(weight_of(FRoD(), W, a | dict(lam=longer, s=s)) - W, want, rtol=0, atol=1e-13)


def test_the_basis_makes_the_mean_diagonal():
    rng = np.random.default_rng(0)
    Ws = [rng.standard_normal((n, 6)) for n in (4, 7, 9)]
    V, R = basis(Ws, 0.3), np.linalg.qr(np.concatenate(Ws))[1]
    E = np.linalg.solve(R.T, V)
    np.testing.assert_allclose(E.T @ E, np.eye(6), rtol=0, atol=1e-12)
    Q = [np.linalg.solve(R.T, W.T).T for W in Ws]
    T = sum(np.linalg.inv(q.T @ q + 0.3 * np.eye(6)) for q in Q)
    D = E.T @ T @ E
    np.testing.assert_allclose(D, np.diag(np.diag(D)), rtol=0, atol=1e-11)
    V = basis([W[:1] for W in Ws], 0.3)
    np.testing.assert_allclose(V.T @ V, np.eye(6), rtol=0, atol=1e-13)
    seen = np.concatenate([W[:1] for W in Ws]) @ V
    np.testing.assert_allclose(
        seen @ seen.T, np.concatenate([W[:1] for W in Ws]) @ np.concatenate([W[:1] for W in Ws]).T, atol=1e-12
    )
    assert abs(seen[:, 3:]).max() < 1e-13


def test_layers_share_basis_and_places():
    model = tiny.model()
    own = attach(model, FRoD(rate=0.02), targets="attn.q.weight mlp.down.weight").adapters[0].grouped()
    for name, n in (("attn.q", 24), ("mlp.down", 40)):
        first, second = (own[f"layers.{i}.{name}.weight"] for i in (0, 1))
        assert {"V", "rows", "cols"} <= first.keys() and second.keys() == {"U", "lam", "s"}
        want = basis([model.params[f"layers.{i}.{name}.weight"] for i in (0, 1)], 1e-3)
        np.testing.assert_array_equal(first["V"], want)
        W = model.params[f"layers.1.{name}.weight"]
        np.testing.assert_allclose((second["U"] * second["lam"]) @ first["V"].T, W, rtol=0, atol=1e-12)
        assert len(first["rows"]) == len(second["s"]) == int(n * n * 0.02)


def test_layers_of_other_settings_share_them_too():
    model, Q = tiny.model(), "layers.1.attn.q.weight"
    adapted = attach(model, FRoD(), targets="attn.q.weight", patterns={Q: dict(dropout=0.5)})
    np.testing.assert_allclose(adapted.run().param(Q), model.params[Q], rtol=0, atol=1e-12)
    with pytest.raises(Bad, match=r"layers.1.attn.q.weight shares rows with layers.0.attn.q.weight"):
        attach(model, FRoD(), targets="attn.q.weight", patterns={Q: dict(rate=0.5)})


@pytest.mark.parametrize(("rate", "k"), [(1e-9, 1), (0.5, 18), (0.999, 30), (1.0, 30)])
def test_places_are_off_the_diagonal_and_distinct(rate, k):
    method = FRoD(rate=rate, seed=3)
    found = places(method, Facts(method, one_part.site(np.ones((4, 6)))))
    rows, cols = found["rows"], found["cols"]
    assert len(rows) == k and (rows != cols).all() and len(set(zip(rows, cols, strict=True))) == k
    assert rows.min() >= 0 and cols.min() >= 0 and rows.max() < 6 and cols.max() < 6
    other = places(FRoD(rate=rate, seed=4), Facts(method, one_part.site(np.ones((4, 6)))))
    assert k == 30 or (other["rows"] != rows).any() or (other["cols"] != cols).any()


@pytest.mark.parametrize("W", [np.zeros((5, 4)), np.ones((5, 4)), np.diag([3.0, 2.0, 0.0, 0.0])])
def test_weights_without_all_directions(W):
    a = started(FRoD(rate=0.2), W)
    assert all(np.isfinite(x).all() for x in a.values())
    np.testing.assert_allclose(weight_of(FRoD(), W, a), W, rtol=0, atol=1e-6 * abs(W).max() + 1e-15)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Bad, match=r"frod: rate must lie in \(0, 1\], found 0.0"):
        FRoD(rate=0.0)
    with pytest.raises(Bad, match=r"frod: expected more than one input, found 1, at layers\.0\.attn"):
        started(FRoD(), np.ones((3, 1)))


# --- files of PEFT ----------------------------------------------------------------------------------------------------


def test_only_files_of_peft_are_written_for_it(tmp_path):
    with pytest.raises(Bad, match="frod: PEFT saves no U, and makes one of a basis of its own in reading"):
        save_peft(attach(tiny.model(), FRoD()), tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {k: a for k, a in t.items() if "frod_V.mlp_up_proj" not in k}, "lacks .*layers.0.mlp.up_proj.frod_V"),
        (lambda t: {k: a for k, a in t.items() if "indices.mlp_up_proj" not in k}, "lacks .*up_proj.frod_s_indices"),
        (lambda t: t | {"base_model.frod_V.mlp_gate_proj": np.eye(24, dtype=np.float32)}, "unexpected key .*mlp_gate_proj"),
        (lambda t: t | {"base_model.frod_V.mlp_up_proj": np.eye(23, dtype=np.float32)}, "expected"),
        (lambda t: t | {"base_model.frod_s_size.mlp_up_proj": np.array([9, 9])}, r"frod_s_size.mlp_up_proj: expected \(24, 24\)"),
        (lambda t: t | {"base_model.frod_s_indices.mlp_up_proj": np.full((2, 28), 24)}, "expected whole numbers from 0 to 23"),
        (lambda t: t | {"base_model.frod_s_indices.mlp_up_proj": np.zeros((2, 28), int)}, "names .* twice"),
    ],
)  # fmt: skip
def test_files_that_do_not_hold_what_they_must(change, says, tmp_path):
    model = load(ROOT / "base", np.float64)
    shutil.copytree(ROOT / "frod" / "adapter", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "adapter_model.safetensors"
    write_tensors(file, change(dict(read_tensors(file))), {"format": "pt"})
    with pytest.raises(Bad, match=says):
        load_peft(model, tmp_path)


def test_a_file_without_its_basis_is_refused(tmp_path):
    shutil.copytree(ROOT / "frod" / "adapter", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | dict(save_projection=False)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        Bad, match="save_projection: expected true: without V, PEFT makes one anew, which is rounding's choice"
    ):
        load_peft(load(ROOT / "base", np.float64), tmp_path)


def test_directions_that_rounding_chooses_are_refused(tmp_path):
    """One matrix of fewer rows than columns: what PEFT's U has beyond them is noise, and what was trained of it unknown."""
    model = load(ROOT / "base", np.float64)
    config = json.loads((ROOT / "frod" / "adapter" / "adapter_config.json").read_text())
    config |= dict(target_modules=["v_proj"], layers_to_transform=[0])
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    start, c = "base_model.model.model.layers.0.self_attn.v_proj.", "self_attn_v_proj"
    V = np.linalg.svd(model.params["layers.0.attn.v.weight"])[2].T.astype(np.float32)
    rows = np.arange(28)
    places = np.array([rows % 24, (rows + 1 + rows // 24) % 24])
    tensors = {
        f"{start}frod_lambda_l": np.ones(24, np.float32),
        f"{start}frod_lambda_s_values": np.ones(28, np.float32),
    }
    tensors |= {f"base_model.frod_V.{c}": V, f"base_model.frod_s_indices.{c}": places}
    write_tensors(tmp_path / "adapter_model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(Bad, match="12 columns of U are rounding's choice, and PEFT does not save it"):
        load_peft(model, tmp_path)


@pytest.mark.hf
@pytest.mark.parametrize(("shape", "rate"), [((7, 6), 0.1), ((12, 9), 0.5), ((5, 9), 0.3)])
def test_output_gradients_and_merged_weight_are_those_of_peft(shape, rate):
    import peft

    rng = np.random.default_rng(0)
    W, b = rng.standard_normal(shape), rng.standard_normal(shape[0])
    x, c = rng.standard_normal((2, 3, shape[1])), rng.standard_normal((2, 3, shape[0]))
    theirs = one_part.Peft(peft.FrodConfig(sparse_rate=rate, target_modules=["lin"], progressbar=False), W, b, x, c)
    layer = theirs.model.base_model.model.lin
    V, U = (held["default"].numpy().astype(float) for held in (layer.frod_V, layer.frod_U))
    rows, cols = layer.frod_s_indices["default"].numpy()
    stored, theta = dict(U=U, V=V, rows=rows, cols=cols), dict(lam="frod_lambda_l", s="frod_lambda_s_values")
    y, grads = one_part.forward_and_grads(
        FRoD(rate=rate), {k: theirs.params[n] for k, n in theta.items()}, stored, x, c, W, b
    )
    assert len(rows) == len(started(FRoD(rate=rate), W)["rows"])
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12)
    for ours, name in theta.items():
        np.testing.assert_allclose(grads[ours], theirs.grads[name], rtol=0, atol=1e-12)
    a = stored | {k: theirs.params[n] for k, n in theta.items()}
    np.testing.assert_allclose(weight_of(FRoD(rate=rate), W, a), theirs.merged(), rtol=0, atol=1e-12)


@pytest.mark.hf
def test_the_basis_of_several_layers_is_that_of_peft():
    import torch
    from peft.tuners.frod.model import _projection_from_weights

    rng = np.random.default_rng(0)
    for sizes in ((8, 5, 9), (2, 1, 2)):
        Ws = [rng.standard_normal((n, 6)) for n in sizes]
        V, want = basis(Ws, 0.2), _projection_from_weights([torch.tensor(W) for W in Ws], 0.2).numpy()
        own = slice(None) if sum(sizes) > 6 else slice(0, 5)
        sign = np.sign((V * want).sum(axis=0))
        np.testing.assert_allclose((V * sign)[:, own], want[:, own], rtol=0, atol=1e-10)
