from itertools import pairwise
from pathlib import Path

import numpy as np
import one_part
import pytest

from minipeft.arrays import intervenes
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.conformance import tiny
from minipeft.drawing import Facts, draw
from minipeft.engine.factors import randomised
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.method import Site, Step, weight_of
from minipeft.methods.structured.adamss import AdaMSS
from minipeft.model.batch import batch
from minipeft.run import change_of
from minipeft.torch_random import TorchGenerator
from minipeft.train import AdamW, fit

NAME = "layers.0.attn.q.weight"


def started(method, W, b=None):
    """The arrays as they start, at a weight that may have a bias."""
    params = {} if b is None else {NAME.replace("weight", "bias"): b}
    site = Site(NAME, W.shape, "linear", one_part.ARCH, W, params=params)
    return {k: np.asarray(a) for k, (a, _) in draw(Facts(method, site, np.random.default_rng(0))).items()}


def setting(shape=(14, 9), seed=0, bias=True, **fields):
    rng = np.random.default_rng(seed)
    W, b = rng.standard_normal(shape), rng.standard_normal(shape[0]) if bias else None
    method = AdaMSS(**dict(r=5, subspaces=3, rank=2) | fields)
    return method, started(method, W, b), W, b


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_found_in_the_weight(bias):
    rng = np.random.default_rng(0)
    M = rng.standard_normal((14, 4)) @ rng.standard_normal((4, 10 if bias else 9))  # nothing is left out
    W, b = (M[:, :9], M[:, 9]) if bias else (M, None)
    method = AdaMSS(r=4, subspaces=3, rank=2)
    a = started(method, W, b)
    V = np.column_stack([a["V"], a["v"]]) if bias else a["V"]
    assert ("v" in a) == bias and a["A"].shape == (3, 2, 4) and a["B"].shape == (14, 2)
    np.testing.assert_allclose(V @ V.T, np.eye(4), rtol=0, atol=1e-12)
    np.testing.assert_allclose(M @ V.T @ V, M, rtol=0, atol=1e-12)
    assert not a["B"].any() and set(a["c"]) == {0, 1, 2}
    U = np.linalg.svd(M @ V.T, full_matrices=False)[0]  # what U is but for a rotation, which no cluster's space knows
    for k in range(3):
        assert a["ranks"][k] == min(2, (a["c"] == k).sum())
        own = a["A"][k, : a["ranks"][k]]
        np.testing.assert_allclose(own @ own.T, np.eye(len(own)), rtol=0, atol=1e-12)
        assert not a["A"][k, a["ranks"][k] :].any()
        rotated = U[a["c"] == k]
        assert np.linalg.matrix_rank(rotated) >= a["ranks"][k]


def test_the_change_lies_in_the_directions_of_the_weight_and_of_each_cluster():
    method, a, W, b = setting(subspaces=4, rank=2)
    rng = np.random.default_rng(1)
    a |= dict(A=rng.standard_normal(a["A"].shape), B=rng.standard_normal(a["B"].shape))
    change = change_of(method, a)
    D = np.column_stack([change.onto(W) - W, change.bias(b) - b])
    V = np.column_stack([a["V"], a["v"]])
    np.testing.assert_allclose(D @ V.T @ V, D, rtol=0, atol=1e-12)
    for k, n in enumerate(a["ranks"]):
        own, rows = a["A"][k, :n] @ V, D[a["c"] == k]
        assert np.linalg.matrix_rank(rows) == min(n, len(rows))
        np.testing.assert_allclose(rows, rows @ np.linalg.pinv(own) @ own, rtol=0, atol=1e-12)
        np.testing.assert_allclose(rows, a["B"][a["c"] == k, :n] @ own, rtol=0, atol=1e-12)
    beyond = {**a, "B": a["B"] * (np.arange(2) < a["ranks"][a["c"]][:, None])}
    np.testing.assert_allclose(change_of(method, beyond).onto(W) - W, D[:, :-1], rtol=0, atol=1e-13)


def test_the_dynamic_rank_counts_large_squares():
    method, a, W, b = setting(r=6, rank=5, subspaces=2)
    usual = a["ranks"]
    assert (usual == np.minimum(np.bincount(a["c"]), 5)).all()
    found = [setting(r=6, rank=5, subspaces=2, dynamic=True, threshold=t)[1]["ranks"] for t in (0.0, 0.2, 0.6, 0.999)]
    assert (found[0] == usual).all() and (found[3] == 1).all()
    assert all((x >= y).all() for x, y in pairwise(found)) and (found[1] != found[0]).any()


def test_more_of_everything_than_there_is():
    a = setting(shape=(3, 9), r=100, subspaces=8, rank=7)[1]
    assert a["A"].shape == (3, 3, 3) and sorted(a["c"]) == [0, 1, 2] and (a["ranks"] == 1).all()
    assert setting(shape=(14, 4), r=100)[1]["V"].shape == (5, 4) and setting(shape=(14, 4), r=100, bias=False)[1][
        "V"
    ].shape == (4, 4)


# --- asa --------------------------------------------------------------------------------------------------------------


def test_the_choice_follows_the_equations():
    """Number by number, with Python's own arithmetic; what an optimiser does to the others is undone."""
    rng = np.random.default_rng(0)
    method = AdaMSS(r=4, subspaces=3, rank=2, asa=True, target=2, first=2, last=8, interval=3, gamma=2.0, beta1=0.7)
    sites = {s: started(method, rng.standard_normal((9, 7)) @ np.diag(np.arange(1.0, 8))) for s in "ab"}
    state, mean, unc, live, still = {}, {}, {}, {(s, k) for s in sites for k in range(3)}, {}

    def part(s, n, at):
        return at[0] if n == "A" else sites[s]["c"][at[0]]

    for t in range(10):
        theta = {
            s: {n: rng.standard_normal(a[n].shape) * (n == "B" or a["A"] != 0) for n in "AB"} for s, a in sites.items()
        }
        grads = {s: {n: rng.standard_normal(x.shape) for n, x in own.items()} for s, own in theta.items()}
        for s, own in grads.items():  # what lies beyond the ranks counts for nothing, so its gradient is 0
            own["A"] *= np.arange(2)[None, :, None] < sites[s]["ranks"][:, None, None]
            own["B"] *= np.arange(2) < sites[s]["ranks"][sites[s]["c"]][:, None]
        want = {s: {n: x.copy() for n, x in own.items()} for s, own in theta.items()}
        for (s, n, at), x in still.items():
            want[s][n][at] = x
        if 2 <= t <= 8:
            for s, own in want.items():
                for n, w in own.items():
                    for at, x in np.ndenumerate(w):
                        if (s, part(s, n, at)) in live:
                            I, was = abs(x * grads[s][n][at]), mean.get((s, n, at), 0.0)
                            unc[s, n, at] = 0.85 * unc.get((s, n, at), 0.0) + 0.15 * abs(I - was)
                            mean[s, n, at] = 0.7 * was + 0.3 * I
            if t % 3 == 0:
                score = {}
                for s, k in live:
                    rank, rows = sites[s]["ranks"][k], (sites[s]["c"] == k).sum()
                    total = dict.fromkeys("AB", 0.0)
                    for (s2, n, at), x in mean.items():
                        if s2 == s and part(s, n, at) == k:
                            total[n] += x * unc[s, n, at]
                    score[s, k] = total["A"] / (rank * 4) + total["B"] / (rank * rows)
                T = int(2 + (6 - 2) * (1 - (t - 2) / 6) ** 2.0)
                live = set(sorted(score, key=score.get, reverse=True)[:T])
                mean, unc = {}, {}
                for s, own in want.items():
                    for n, w in own.items():
                        still |= {(s, n, at): x for at, x in np.ndenumerate(w) if (s, part(s, n, at)) not in live}
        step = Step(t + 1, 10, theta, grads, sites, state)
        method.after_step(step)
        for s, own in want.items():
            for n, w in own.items():
                np.testing.assert_array_equal(step.theta[s][n], w)
    assert len(live) == 2


def test_training_keeps_as_many_as_are_asked_for():
    assert not intervenes(AdaMSS()) and intervenes(AdaMSS(asa=True))
    model = tiny.model()
    made = attach(
        model, AdaMSS(r=6, subspaces=3, asa=True, target=4, first=1, last=5, interval=2), targets="attn.q.weight"
    )
    four, eight = (fit(made, [tiny.example(model)], steps=n, optimiser=AdamW(lr=0.02)).adapted.theta for n in (5, 9))
    moved = 0
    for key, a in four.items():
        c = made.adapters[0].arrays[key.removeprefix("default/").replace(":A", ":c").replace(":B", ":c")]
        rows = (a != eight[key]).reshape(len(a), -1).any(axis=1)
        moved += rows.sum() if key.endswith(":A") else 0
        if key.endswith(":B"):
            assert (
                rows == (four[key.replace(":B", ":A")] != eight[key.replace(":B", ":A")]).reshape(3, -1).any(axis=1)[c]
            ).all()
    assert moved == 4  # of six


@pytest.mark.parametrize("last", [3, 4, 6])
def test_a_training_that_is_killed_goes_on_with_the_same_clusters(last, tmp_path):
    model = tiny.model()
    made = attach(
        model, AdaMSS(r=6, subspaces=3, asa=True, target=4, first=1, last=5, interval=2), targets="attn.q.weight"
    )
    data, given = [tiny.example(model)], dict(steps=9, optimiser=AdamW(lr=0.02))
    want = fit(made, data, **given).adapted.theta

    def kill(t, *_):
        if t == last:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(made, data, **given, checkpoint=tmp_path / "training.safetensors", every=1, progress=kill)
    got = fit(made, data, **given, checkpoint=tmp_path / "training.safetensors", every=1).adapted.theta
    assert all(np.array_equal(got[k], a) for k, a in want.items())


def test_settings_that_do_not_go_together():
    with pytest.raises(Bad, match="adamss: first must be less than last, found 5 and 5"):
        AdaMSS(asa=True, first=5, last=5)
    AdaMSS(first=5, last=5)


# --- files of PEFT ----------------------------------------------------------------------------------------------------


def test_clusters_that_rounding_chooses_are_neither_written_nor_read(tmp_path):
    model = tiny.model()
    said = (
        r"which of 24 outputs are in which of \d+ clusters is not in PEFT's files: with r ≥ 24, .* expected r below 24"
    )
    with pytest.raises(Bad, match=said):
        save_peft(attach(model, AdaMSS(), targets="attn.q.weight"), tmp_path)
    save_peft(attach(model, AdaMSS(r=9, rank=3), targets="attn.q.weight"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = dict(read_tensors(file))
    key = "base_model.model.model.layers.1.self_attn.q_proj.adamss_B.1"
    for wrong, says in ((tensors | {key: np.ones((99, 3))}, "adamss_B.1 as B1: expected shape"),
                        ({k: a for k, a in tensors.items() if k != key}, "lacks .*adamss_B.1")):  # fmt: skip
        write_tensors(file, wrong, {"format": "pt"})
        with pytest.raises(Bad, match=says):
            load_peft(model, tmp_path)


@pytest.mark.hf
@pytest.mark.parametrize(
    ("shape", "fields"),
    [((14, 9), {}), ((8, 20), dict(r=6, rank=3, seed=5)), ((20, 8), dict(subspaces=4, rank=4, dynamic=True, threshold=0.3))],
)  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_clusters_output_gradients_and_merged_weight_are_those_of_peft(shape, fields, bias):
    import peft

    method, a, W, b = setting(shape, bias=bias, **fields)
    rng = np.random.default_rng(1)
    x, c = rng.standard_normal((2, 3, shape[1])), rng.standard_normal((2, 3, shape[0]))
    config = peft.AdamssConfig(
        r=method.r, num_subspaces=method.subspaces, subspace_rank=method.rank, use_dynamic_rank=method.dynamic,
        svd_threshold=method.threshold, random_seed=method.seed, target_modules=["lin"],
    )  # fmt: skip
    theirs = one_part.Peft(config, W, b, x, c)
    layer = theirs.model.base_model.model.lin
    for k, rows in layer.seg_result["default"].items():
        assert np.array_equal(rows, np.flatnonzero(a["c"] == k))
    V = theirs.state["base_model.model.lin.adamss_newB.default"]
    assert abs(abs((V * (np.column_stack([a["V"], a["v"]]) if bias else a["V"])).sum(axis=1)) - 1).max() < 1e-5
    theta = {n: np.zeros(a[n].shape) for n in "AB"}
    for k, n in enumerate(a["ranks"]):
        theta["A"][k, :n], theta["B"][a["c"] == k, :n] = (theirs.params[f"adamss_{m}.{k}"] for m in "AB")
    rest = dict(V=V[:, : shape[1]], c=a["c"], ranks=a["ranks"]) | (dict(v=V[:, -1]) if bias else {})
    y, grads = one_part.forward_and_grads(method, theta, rest, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12)
    for k, n in enumerate(a["ranks"]):
        np.testing.assert_allclose(grads["A"][k, :n], theirs.grads[f"adamss_A.{k}"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(grads["B"][a["c"] == k, :n], theirs.grads[f"adamss_B.{k}"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(weight_of(method, W, theta | rest), theirs.merged(), rtol=0, atol=1e-12)


@pytest.mark.hf
@pytest.mark.parametrize("rank", [1, 2])
def test_a_starts_near_the_spaces_of_peft(rank):
    """Theirs are drawn, two steps from the largest: they hold nearly as much of the rows of U, and never more."""
    import peft
    import torch

    method, a, W, b = setting(rank=rank)
    torch.manual_seed(0)
    lin = torch.nn.Linear(9, 14)
    lin.weight.data, lin.bias.data = torch.tensor(W).float(), torch.tensor(b).float()
    config = peft.AdamssConfig(r=5, num_subspaces=3, subspace_rank=rank, target_modules=["0"])
    layer = peft.get_peft_model(torch.nn.Sequential(lin), config).base_model.model[0]
    U, _, V = randomised(np.column_stack([W, b]), TorchGenerator(0).normal((10, 5)).astype(float))
    turned = layer.adamss_newB["default"].numpy() @ V.T  # signs
    for k, n in enumerate(a["ranks"]):
        own = layer.adamss_A["default"][k].detach().numpy() @ turned
        held = [np.linalg.norm(U[a["c"] == k] @ A.T) for A in (own, a["A"][k, :n])]
        assert 0.9 * held[1] < held[0] <= held[1] * (1 + 1e-5)


@pytest.mark.hf
def test_the_choice_is_that_of_peft_but_for_one():
    import peft
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(9, 14), torch.nn.Linear(14, 20)).double()
    asa = dict(init_warmup=1, final_warmup=4, mask_interval=4)
    config = peft.AdamssConfig(
        r=5, num_subspaces=3, subspace_rank=2, target_modules=["0", "1"], use_asa=True, asa_target_subspaces=4, **asa
    )
    model = peft.get_peft_model(net, config).double()
    layers = {str(i): model.base_model.model[i] for i in (0, 1)}
    stored = {}
    for s, layer in layers.items():
        c = np.zeros(layer.out_features, int)
        for k, rows in layer.seg_result["default"].items():
            c[rows] = k
        stored[s] = dict(c=c, ranks=np.array([len(A) for A in layer.adamss_A["default"]]))

    def dense(get):
        out = {}
        for s, layer in layers.items():
            A, B = np.zeros((3, 2, 5)), np.zeros((layer.out_features, 2))
            for k, n in enumerate(stored[s]["ranks"]):
                A[k, :n] = get(layer.adamss_A["default"][k]).numpy()
                B[stored[s]["c"] == k, :n] = get(layer.adamss_B["default"][k]).numpy()
            out[s] = dict(A=A, B=B)
        return out

    method = AdaMSS(r=5, subspaces=3, rank=2, asa=True, target=3, first=1, last=4, interval=4)
    state, optimiser = {}, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for t in range(6):
        optimiser.zero_grad()
        (model(torch.randn(4, 9, dtype=torch.float64)) ** 2).sum().backward()
        optimiser.step()
        theta, grads = dense(lambda p: p.detach()), dense(lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
        model.base_model.update_and_allocate(t)
        step = Step(t + 1, 6, theta, grads, stored, state)
        method.after_step(step)
        for s, own in dense(lambda p: p.detach()).items():
            assert all(np.array_equal(step.theta[s][n], own[n]) for n in "AB")
    for s, layer in layers.items():
        assert [bool(x) for x in state[f"live/{s}:A"][:, 0, 0]] == [A.requires_grad for A in layer.adamss_A["default"]]
    assert sum(x[:, 0, 0].sum() for k, x in state.items() if k.startswith("live/") and k.endswith("A")) == 3


def test_a_tied_head_is_found_in_the_table(tmp_path):
    base = load(Path(__file__).parents[2] / "data" / "peft" / "gpt2" / "base", np.float64)
    adapted = attach(base, AdaMSS(r=4, subspaces=2), targets="head.weight")
    rng = np.random.default_rng(0)
    adapted = adapted.replace(
        {k: np.float64(np.float32(v + rng.standard_normal(v.shape))) for k, v in adapted.theta.items()}
    )
    save_peft(adapted, tmp_path)
    given = batch(input_ids=np.array([[5, 9, 3]]))
    again, want = load_peft(base, tmp_path).logits(given), adapted.logits(given)
    np.testing.assert_allclose(again, want, rtol=0, atol=1e-6 * abs(want).max())
