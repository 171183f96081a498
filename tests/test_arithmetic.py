"""Adapters made one, against closed forms and against PEFT's own sums; a different adapter for every row."""

import dataclasses
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.arithmetic import Combination, by_row, combine, dropped, elected, largest, low_rank, without_intruders
from minipeft.attaching import attach
from minipeft.checkpoints.native import load_adapter, save_adapter
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.method import change_of, method_class
from minipeft.model.batch import batch
from minipeft.model.generate import generate

SITE = "layers.0.attn.q.weight"
KINDS = ("linear", "cat", "svd", "magnitude_prune", "dare_linear", "ties", "dare_ties")
SVD = tuple(f"{k}_svd" for k in KINDS[3:])


def moved(adapted, seed):
    rng = np.random.default_rng(seed)
    return adapted.replace({k: a + 0.3 * rng.standard_normal(a.shape) for k, a in adapted.theta.items()})


def with_adapters(model, *methods, **options):
    """The model with these adapters, named a, b, …, as if trained."""
    out = model
    for i, m in enumerate(methods):
        name = "abcdef"[i]
        out = attach(out, m, name=name, seed=i, **({"targets": [SITE, "layers.1.mlp.up.weight"]} | options))
    return moved(out, 9)


def lora(**settings):
    return method_class("lora")(**dict(r=3, alpha=5.0) | settings)


@pytest.fixture(scope="module")
def model():
    return tiny.model("llama", np.float64)


def delta(adapted, site=SITE):
    (adapter,) = adapted.adapters
    W = adapted.model.params[site]
    return change_of(adapter.at[site], adapter.grouped()[site]).onto(W) - W


def own(adapted, name, site=SITE):
    a = adapted.adapter(name)
    return a.grouped()[site], a.at[site]


@pytest.mark.parametrize("w", [(0.7, 0.4), (1.3, -0.6)])
def test_cat_is_the_sum_of_changes(model, w):
    both = with_adapters(model, lora(), lora(r=2, rslora=True))
    one = combine(both, dict(a=w[0], b=w[1]), Combination("cat"))
    wants = both.using(a=w[0], b=w[1])
    for site in (SITE, "layers.1.mlp.up.weight"):
        W = model.params[site]
        np.testing.assert_allclose(delta(one, site), wants.run().param(site) - W, atol=1e-14)
    assert one.adapters[0].at[SITE].r == 5
    x = tiny.example(model)
    np.testing.assert_allclose(one.logits(x), wants.logits(x), atol=1e-12)


def test_one_adapter_with_weight_one_is_itself(model):
    """Where linear mixes factors of several, of one it is exact; so are subtraction and doubling."""
    both = with_adapters(model, lora(), lora())
    for kind in ("linear", "cat", "svd"):
        np.testing.assert_allclose(delta(combine(both, dict(a=1.0), Combination(kind))), delta(Adapted(model, (both.adapter("a"),))), atol=1e-13)  # fmt: skip
    gone = combine(both.using(), dict(a=1.0), Combination("cat"))
    less = combine(attach(gone, lora(), name="z", targets=[SITE]), dict(combined=1.0, z=-1.0), Combination("cat"))
    np.testing.assert_allclose(delta(less), delta(gone), atol=1e-14)  # z is 0 before training


@pytest.mark.parametrize("kind", ["loha", "dora", "oft", "ia3", "lokr", "vera", "pissa"])
def test_any_change_of_weights_becomes_low_rank(model, kind):
    """Decomposed at full rank it is the same; exactly and without a rank where it is B A already."""
    sized = dict(loha=dict(r=2), dora=dict(r=2), lokr=dict(r=2), vera=dict(r=2), pissa=dict(r=2), oft=dict(block=4))
    adapted = moved(attach(model, method_class(kind)(**sized.get(kind, {})), targets=[SITE]), 3)
    W = model.params[SITE]
    want = adapted.run().param(SITE) - W
    plain = low_rank(adapted, rank=min(W.shape))
    assert type(plain.adapters[0].at[SITE]) is method_class("lora")
    np.testing.assert_allclose(delta(plain), want, atol=1e-12)
    x = tiny.example(model)
    np.testing.assert_allclose(plain.logits(x), adapted.logits(x), atol=1e-10)
    if kind in ("vera", "pissa"):
        exact = low_rank(adapted)
        np.testing.assert_allclose(delta(exact), want, atol=1e-13)
        assert exact.adapters[0].at[SITE].r == (2 if kind == "vera" else 4)
    else:
        with pytest.raises(Bad, match="is no product of two factors"):
            low_rank(adapted)


def test_a_share_of_the_squares_is_kept_and_no_more(model):
    adapted = moved(attach(model, method_class("loha")(r=2), targets=[SITE]), 3)
    S = np.linalg.svd(adapted.run().param(SITE) - model.params[SITE], compute_uv=False) ** 2
    for share in (0.3, 0.9, 1.0):
        r = low_rank(adapted, rank=share).adapters[0].at[SITE].r
        assert S[:r].sum() >= share * S.sum() * (1 - 1e-12)
        assert r == 1 or S[: r - 1].sum() < share * S.sum() * (1 - 1e-12)


def test_factors_are_thinned_and_voted_on_by_hand():
    a = np.array([[3.0, -1.0], [0.5, -2.0]])
    assert largest(a, 0.5).tolist() == [[3, 0], [0, -2]]
    assert largest(a, 0.3).tolist() == [[3, 0], [0, 0]]  # ⌊1.2⌋
    T = [np.array([2.0, -1.0, 0.0, 1.0]), np.array([-1.0, -3.0, -2.0, -1.0]), np.array([-0.5, 5.0, 0.0, -0.5])]
    w = np.array([1.0, 10.0, 100.0])
    # total: + (0.5), + (1), −, − : the mean over those that agree
    np.testing.assert_allclose(elected(T, w, "total"), [2, 500, -20, (-10 - 50) / 2])
    np.testing.assert_allclose(elected(T, w, "frequency"), [(-10 - 50) / 2, (-1 - 30) / 2, -20, (-10 - 50) / 2])
    np.testing.assert_allclose(
        elected([np.array([1.0]), np.array([-1.0])], np.array([2.0, 3.0]), "total"), [2.0]
    )  # + wins


def test_what_is_dropped_keeps_the_mean():
    a = np.ones((300, 400))
    kept = dropped(a, 0.2, np.random.default_rng(0))
    assert set(np.unique(kept)) == {0.0, 5.0}
    assert abs(kept.mean() - 1) < 5 * 2 / np.sqrt(a.size)  # five standard deviations: σ = √(1/d − 1) = 2


def test_every_kind_keeps_the_type_and_is_saved(model, tmp_path):
    narrow = tiny.model("llama", np.float32)
    both = with_adapters(narrow, lora(lora_bias=True), lora(), targets=["layers.0.attn.q.weight"])
    for kind in (*KINDS, *SVD):
        how = Combination(kind, density=None if kind in ("linear", "cat", "svd") else 0.5)
        one = combine(both, dict(a=0.5, b=-0.25), how)
        assert {a.dtype for a in one.adapters[0].arrays.values()} == {np.dtype(np.float32)}
        save_adapter(one, tmp_path / kind)
        back = load_adapter(narrow, tmp_path / kind)
        x = tiny.example(model)
        assert np.array_equal(back.logits(x), one.logits(x))
        bias = one.adapters[0].grouped()[SITE]["c"]
        arrays, m = own(both, "a")
        np.testing.assert_allclose(bias, 0.5 * m.scale * arrays["c"], rtol=1e-6)


def test_what_is_trained_whole_stays_whole(model):
    one = with_adapters(model, lora(), lora(), targets=[SITE], train_whole=["layers.1.attn.o"], bias="adapted")
    W, other = model.params["layers.1.attn.o.weight"], "layers.1.attn.o.weight"
    for kind in ("cat", "svd"):
        both = combine(one, dict(a=0.5, b=-2.0), Combination(kind))
        wants = W + sum(w * (next(iter(own(one, n, other)[0].values())) - W) for n, w in (("a", 0.5), ("b", -2.0)))
        np.testing.assert_allclose(both.run().param(other), wants, atol=1e-13)
        assert both.adapters[0].at[other].name == "full" and type(both.adapters[0].method) is method_class("lora")
    mixed = attach(one, "full", name="c", targets=[SITE])
    with pytest.raises(Bad, match="is trained whole by one adapter, and changed by another"):
        combine(mixed, dict(a=1.0, c=1.0))


def test_what_cannot_be_is_one_line(model):
    both = with_adapters(model, lora(), lora(r=2))
    for change, line in [
        (dict(kind="linear"), "linear adds up factors of one rank, found 'a' 3, 'b' 2 at layers.0.attn.q.weight"),
        (dict(kind="ties", density=0.0), "density must lie in"),
        (dict(kind="ties"), "ties needs a density"),
        (dict(kind="cat", density=0.5), "cat has no density"),
        (dict(kind="cat", rank=2), "cat has no rank"),
        (dict(kind="svd", rank=1.5), "rank must be an integer from 1 on, or a share"),
        (dict(kind="tie"), "did you mean ties"),
    ]:
        with pytest.raises(Bad, match=line):
            combine(both, dict(a=1.0, b=1.0), Combination(**change))
    with pytest.raises(Bad, match="'c' is not attached"):
        combine(both, dict(c=1.0))
    with pytest.raises(Bad, match="at least one adapter"):
        combine(both, {})
    with pytest.raises(Bad, match="expected a finite number as its weight"):
        combine(both, dict(a=float("nan")))
    with pytest.raises(Bad, match="which is not by a matrix of its size"):
        combine(attach(model, "houlsby"), dict(default=1.0))


def test_intruders_are_scaled_and_nothing_else(model):
    adapted = with_adapters(model, lora(r=4, alpha=6.0), targets=[SITE])
    W, D = model.params[SITE], delta(Adapted(model, (adapted.adapter("a"),)))
    U0, (U, S, Vt) = np.linalg.svd(W)[0], np.linalg.svd(W + D, full_matrices=False)
    cosines = np.array([max(abs(float(u @ v)) for v in U0.T) for u in U.T])
    foreign = [i for i in range(6) if cosines[i] < 0.6]
    assert 0 < len(foreign) < 6
    for keep in (0.0, 0.4, 1.0):
        got = delta(without_intruders(adapted, "a", first=6, below=0.6, keep=keep))
        want = D + sum((keep - 1) * S[i] * np.outer(U[:, i], Vt[i]) for i in foreign)
        u, s, vt = np.linalg.svd(want)
        np.testing.assert_allclose(got, (u[:, :4] * s[:4]) @ vt[:4], atol=1e-12)


# --- several in use ---------------------------------------------------------------------------------------------------


def test_merged_one_after_the_other_in_any_order(model):
    """With weights the order of adapters does not matter, and merging does not change what is computed."""
    many = with_adapters(model, lora(), method_class("loha")(r=2), method_class("ia3")(), targets=[SITE])
    x, seen = tiny.example(model), []
    for order in permutations("abc"):
        used = many.using(**{n: {"a": 0.5, "b": -1.0, "c": 2.0}[n] for n in order})
        np.testing.assert_allclose(Adapted(merge(used)).logits(x), used.logits(x), atol=1e-12)
        seen.append(used.logits(x))
    for other in seen[1:]:
        np.testing.assert_allclose(other, seen[0], atol=1e-12)
    np.testing.assert_allclose(many.using().logits(x), Adapted(model).logits(x), atol=0)


def test_every_row_has_its_own_adapter(model):
    many = with_adapters(model, lora(), method_class("houlsby")(), targets=None)
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 20, (5, 6))
    mask = np.ones_like(ids)
    mask[1, :2] = mask[4, :3] = 0
    x, names = batch(input_ids=ids * mask, attention_mask=mask), ["b", None, "a", "b", "a"]
    got = by_row(many, names, x, Adapted.logits)
    for i, name in enumerate(names):
        alone = many.using(*([name] if name else [])).logits(x.part([i]))
        np.testing.assert_allclose(got[i], alone[0], atol=1e-12)
    written = by_row(many, names, x, lambda a, b: generate(a, b, 4))
    for i, name in enumerate(names):
        assert np.array_equal(written[i], generate(many.using(*([name] if name else [])), x.part([i]), 4)[0])
    with pytest.raises(Bad, match="for each of 5 rows, found 2"):
        by_row(many, ["a", "b"], x, Adapted.logits)
    with pytest.raises(Bad, match="'d' is not attached"):
        by_row(many, ["d"] * 5, x, Adapted.logits)


# --- PEFT -------------------------------------------------------------------------------------------------------------


@pytest.mark.hf
@pytest.mark.parametrize("w", [(0.7, 0.4), (1.3, -0.6)])
@pytest.mark.parametrize(
    ("kind", "votes"),
    [(kind, v) for kind in (*KINDS, *SVD) for v in ("total", "frequency") if "ties" in kind or v == "total"],
)
def test_sums_are_those_of_peft(model, monkeypatch, kind, w, votes):
    """All eleven; of DARE with the same draws."""
    import peft
    import torch
    from peft.utils import merge_utils

    ranks = (3, 2) if kind == "cat" or kind.endswith("svd") else (3, 3)
    both = with_adapters(model, *(lora(r=r, alpha=5.0 + r) for r in ranks), targets=[SITE])
    W = model.params[SITE]
    theirs = torch.nn.Sequential(torch.nn.Linear(W.shape[1], W.shape[0], bias=False)).double()
    theirs[0].weight.data = torch.tensor(np.array(W))
    for i, (n, r) in enumerate(zip("ab", ranks)):
        config = peft.LoraConfig(r=r, lora_alpha=5.0 + r, target_modules=["0"])
        theirs = peft.get_peft_model(theirs, config, n) if i == 0 else theirs
        if i:
            theirs.add_adapter(n, config)
    layer = theirs.base_model.model[0].double()
    for n in "ab":
        arrays, _ = own(both, n)
        layer.lora_A[n].weight.data, layer.lora_B[n].weight.data = (torch.tensor(np.array(arrays[k])) for k in "AB")
    drawn = np.random.default_rng(4)

    def pruned(tensor, density, rescale):
        keep = torch.tensor(drawn.random(tuple(tensor.shape)) < density)
        return tensor * keep / density

    monkeypatch.setattr(merge_utils, "random_pruning", pruned)
    thin = kind not in ("linear", "cat", "svd")
    theirs.add_weighted_adapter(
        ["a", "b"], list(w), "c", kind, density=0.4 if thin else None, majority_sign_method=votes
    )
    how = Combination(kind, density=0.4 if thin else None, votes=votes, seed=4)
    one = combine(both, dict(a=w[0], b=w[1]), how)
    want = layer.get_delta_weight("c").detach().numpy()
    u = np.finfo(np.float32).eps / 2  # PEFT holds weights and their roots in float32
    np.testing.assert_allclose(delta(one), want, rtol=0, atol=8 * u * abs(want).max())


@pytest.mark.hf
def test_a_sum_travels_to_peft(tmp_path):
    from pathlib import Path

    from minipeft.checkpoints import load
    from minipeft.interop.peft.reading import load_peft
    from minipeft.interop.peft.writing import save_peft

    base = load(Path(__file__).parent / "data" / "peft" / "llama" / "base", np.float64)
    both = moved(attach(attach(base, lora(), name="a"), "dora", name="b", targets="mlp.up.weight"), 1)
    one = combine(both, dict(a=0.5, b=-2.0), Combination("svd", 6))
    save_peft(one, tmp_path)
    x = batch(input_ids=[[5, 9, 3, 17, 30]])
    np.testing.assert_allclose(load_peft(base, tmp_path).logits(x), one.logits(x), atol=1e-6)
    assert dataclasses.replace(one.adapters[0].at[SITE], r=1, alpha=1.0) == lora(r=1, alpha=1.0)


def test_what_it_becomes_does_not_depend_on_which_methods_were_imported_first():
    program = "import minipeft.methods.orthogonal.psoft, minipeft.arithmetic as a; print(a.low_rank_method().name)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "lora"
