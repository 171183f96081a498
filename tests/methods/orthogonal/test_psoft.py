import json
from pathlib import Path

import numpy as np
import one_part
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.engine.factors import as_torch, singular
from minipeft.errors import Bad
from minipeft.interop.peft.config import checked
from minipeft.interop.peft.reading import load_peft, load_peft_parts, read_adapter_tensors
from minipeft.interop.peft.writing import save_peft
from minipeft.method import weight_of
from minipeft.methods.orthogonal.psoft import PSOFT
from minipeft.model.batch import batch

ROOT = Path(__file__).parents[2] / "data" / "peft" / "llama"
KEYS = dict(q="psoft_R.weight", O="psoft_R.weight", alpha="psoft_R.vector_a", beta="psoft_R.vector_b")
SHAPES = [
    (1, 1),
    (1, 5),
    (5, 1),
    (2, 3),
    (3, 3),
    (10, 14),
    (14, 10),
    (8, 12),
    (12, 8),
    (12, 30),
    (4, 90),
    (40, 12),
    (24, 24),
]


def drawn(method, W, moved=0.5):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(1), moved=moved)


def part(W, r):
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    return (U[:, :r] * S[:r]) @ Vt[:r]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_a_turn_keeps_lengths_and_angles_of_the_principal_columns_and_leaves_the_rest(shape):
    """The Gram matrix of the outputs' coordinates in the space is turned with them: singular values stay."""
    W = np.random.default_rng(0).standard_normal(shape)
    method = PSOFT(r=4, scale_in=False, scale_out=False, cayley="exact")
    a = drawn(method, W)
    O = method.turn(a["q"])
    np.testing.assert_allclose(O @ O.T, np.eye(4), rtol=0, atol=1e-14)
    assert np.linalg.det(O) > 0 and abs(O - np.eye(4)).max() > 0.1
    W1, rest = weight_of(method, W, a), W - part(W, 4)
    np.testing.assert_allclose(W1 - rest, a["B"] @ O @ a["A"], rtol=0, atol=1e-13)
    left, right = np.linalg.svd(W)[0][:, 4:], np.linalg.svd(W)[2][4:]
    np.testing.assert_allclose(left.T @ W1, left.T @ W, rtol=0, atol=1e-13)
    np.testing.assert_allclose(W1 @ right.T, W @ right.T, rtol=0, atol=1e-13)


def test_the_turn_is_that_of_its_angle_and_the_inverse_of_ofts():
    """q = tan(φ/2) turns the second coordinate into the first by φ."""
    q = np.array([np.tan(0.35)])
    turn = np.array([[np.cos(0.7), np.sin(0.7)], [-np.sin(0.7), np.cos(0.7)]])
    np.testing.assert_allclose(PSOFT(r=2).turn(q), turn, rtol=0, atol=1e-15)
    series = PSOFT(r=2, cayley="neumann", terms=60).turn(q)
    np.testing.assert_allclose(series, turn, rtol=0, atol=1e-14)


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 9])
def test_the_series_ends_with_coefficient_one(terms):
    q = np.random.default_rng(0).standard_normal(6)
    Q = np.zeros((4, 4))
    Q[np.triu_indices(4, 1)] = q
    Q -= Q.T
    last = max(terms - 1, 3)
    expected = np.eye(4) + sum((1 if k == last else 2) * np.linalg.matrix_power(Q, k) for k in range(1, last + 1))
    expected = {1: np.eye(4), 2: np.eye(4) + 2 * Q}.get(terms, expected)
    np.testing.assert_allclose(PSOFT(r=4, cayley="neumann", terms=terms).turn(q), expected, rtol=0, atol=1e-12)


def test_eps_shortens_what_is_longer_and_leaves_the_rest():
    q = np.array([0.3, -0.4, 0.0])  # ‖Q‖ = √2 / 2
    plain = PSOFT(r=3, cayley="neumann", terms=2)
    short = PSOFT(r=3, cayley="neumann", terms=2, eps=0.5)
    np.testing.assert_allclose(np.linalg.norm(short.turn(q) - np.eye(3)), 1.0, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(short.turn(0.5 * q), plain.turn(0.5 * q))
    np.testing.assert_array_equal(PSOFT(r=3, eps=0.5).turn(q), PSOFT(r=3).turn(q))  # the exact form needs none


@pytest.mark.parametrize("split", ["psoft", "pissa"])
@pytest.mark.parametrize("svd", ["full", "lowrank"])
def test_a_and_b_start_as_the_principal_part(split, svd):
    W = np.random.default_rng(0).standard_normal((9, 12))
    a = drawn(PSOFT(r=3, split=split, svd=svd, niter=200), W, moved=0)
    np.testing.assert_allclose(a["B"] @ a["A"], part(W, 3), rtol=0, atol=1e-12)
    gram = a["A"] @ a["A"].T
    S = np.diag(np.linalg.svd(W)[1][:3])
    np.testing.assert_allclose(gram, np.eye(3) if split == "psoft" else S, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weight_of(PSOFT(r=3), W, a), W, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_signs_are_the_same_every_time_and_turn_with_the_weights(shape):
    """They are signs: the rest is the decomposition in float64."""
    W = np.random.default_rng(0).standard_normal(shape)
    (U, S, Vt), plain = as_torch("W", W), singular("W", W)
    sign = np.sign((Vt * plain[2]).sum(axis=1))
    for got, want in ((U, plain[0] * sign), (S, plain[1]), (Vt, plain[2] * sign[:, None])):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(as_torch("W", 1.25 * W)[2].round(9), Vt.round(9))


def test_a_rank_beyond_the_shorter_side_is_refused():
    with pytest.raises(Bad, match=r"psoft: r must be at most 6, found 7 at layers\.0"):
        drawn(PSOFT(r=7), np.ones((6, 8)))


def test_one_direction_is_stretched_only():
    W = np.random.default_rng(0).standard_normal((6, 8))
    a = drawn(PSOFT(r=1), W) | dict(alpha=np.array([3.0]), beta=np.array([0.5]))
    assert a["q"].shape == (0,)
    np.testing.assert_allclose(weight_of(PSOFT(r=1), W, a), W + 0.5 * part(W, 1), rtol=0, atol=1e-14)


def test_a_low_rank_decomposition_whose_signs_roundings_decide_is_refused(tmp_path):
    """After many steps of powers each direction has but roundings of the others."""
    base, folder = load(ROOT / "base", np.float64), ROOT / "psoft" / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= dict(psoft_svd="lowrank", psoft_svd_lowrank_niter=100)
    with pytest.raises(Bad, match=r"psoft_svd='lowrank': PEFT finds .* anew on loading, and roundings decide some"):
        load_peft_parts(base, checked(config), read_adapter_tensors(folder), folder)
    with pytest.raises(Bad, match=r"^psoft: layers\.0\..*roundings decide some"):
        save_peft(attach(base, PSOFT(r=4, svd="lowrank", niter=100)), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.hf
@pytest.mark.parametrize("niter", [0, 1, 3])
def test_peft_finds_the_same_low_rank_decomposition(niter, tmp_path):
    """In float32, as PEFT ships: files of its own, and ours."""
    import peft
    import torch
    import transformers

    def theirs():
        return transformers.LlamaForCausalLM.from_pretrained(ROOT / "base", dtype=torch.float32)

    ids = np.array([[5, 9, 3, 17]])
    config = peft.PsoftConfig(
        r=2, target_modules=["q_proj", "down_proj"], psoft_svd="lowrank", psoft_svd_lowrank_niter=niter, random_seed=3, init_weights=False
    )  # fmt: skip
    torch.manual_seed(0)
    model = peft.get_peft_model(theirs(), config).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn(p.shape) * p.requires_grad
    model.save_pretrained(tmp_path / "theirs")
    want = model(torch.tensor(ids)).logits.detach().numpy()
    base = load(ROOT / "base", np.float64)
    adapted = load_peft(base, tmp_path / "theirs")
    got = adapted.logits(batch(input_ids=ids))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * abs(want).max())
    assert abs(got - Adapted(base).logits(batch(input_ids=ids))).max() > 0.1
    save_peft(adapted, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(theirs(), tmp_path / "ours").eval()(torch.tensor(ids)).logits
    np.testing.assert_allclose(again.detach().numpy(), want, rtol=0, atol=1e-5 * abs(want).max())


@pytest.mark.hf
@pytest.mark.parametrize(
    "shape", [*SHAPES, (64, 256), (100, 64), (95, 64), (96, 64), (3, 59), (3, 60), (17, 12), (18, 12)]
)
def test_signs_are_those_of_torch(shape):
    """But for one in eight at most, which roundings decide, processor by processor: another rule would have half of them wrong,

    and of 80 or more as few as these by chance in one of 10¹¹ trials.
    """
    import torch

    other = total = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        U, S, Vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
        W = ((U * 0.9 ** np.arange(len(S))) @ Vt).astype(np.float32)
        theirs = torch.linalg.svd(torch.tensor(W), full_matrices=False)[2].numpy()
        safe = 0.9 ** np.arange(len(S)) > 1e-3
        cosine = (as_torch("W", W)[2] * theirs).sum(axis=1)[safe]
        assert (abs(cosine) > 0.99).all()
        other, total = other + (cosine < 0).sum(), total + len(cosine)
    assert other <= total / 8


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(6, 9), (13, 5)])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(split="pissa", scale_in=False),
        dict(orth=False),
        dict(orth=False, split="pissa", scale_out=False),
        dict(cayley="neumann", terms=2, eps=0.2),
        dict(cayley="neumann", terms=3, scale_in=False, scale_out=False),
        dict(cayley="neumann", terms=6, eps=0.4),
        dict(cayley="neumann", terms=6, eps=0.99),
    ],
    ids=str,
)
def test_output_gradients_and_merged_weight_are_those_of_peft(shape, options, monkeypatch):
    import peft
    import torch
    from peft.tuners.psoft import layer

    from minipeft.interop.peft.harness import Wide

    monkeypatch.setattr(layer, "torch", Wide(torch))
    rng = np.random.default_rng(0)
    out, in_ = shape
    W, b, x, c = (rng.standard_normal(s) for s in (shape, (out,), (2, 3, in_), (2, 3, out)))
    method = PSOFT(r=4, **options)
    config = peft.PsoftConfig(
        r=4, psoft_alpha=7, target_modules=["lin"], psoft_orth=method.orth, psoft_mag_a=method.scale_in,
        psoft_mag_b=method.scale_out, ab_svd_init=f"{method.split}_init", use_cayley_neumann=method.cayley == "neumann",
        num_cayley_neumann_terms=method.terms, cayley_neumann_eps=method.eps,
    )  # fmt: skip
    theirs = one_part.Peft(config, W, b, x, c)
    a = drawn(method, W)
    lin = theirs.model.base_model.model.lin
    A, B = (lin._psoft_A_cache["default"].numpy(), lin._psoft_B_cache["default"].numpy())
    s = 7 / 4
    their = dict(A=A, B=s * B) if method.split == "psoft" else dict(A=s**0.5 * A, B=s**0.5 * B)
    np.testing.assert_allclose(their["B"] @ their["A"], a["B"] @ a["A"], rtol=0, atol=1e-12)
    for k in ("A", "B"):
        np.testing.assert_allclose(abs(their[k]), abs(a[k]), rtol=0, atol=1e-12)
    names = {k: KEYS[k] for k in a if k in KEYS}
    assert set(names.values()) == set(theirs.params)
    theta = {k: theirs.params[name] for k, name in names.items()}
    y, grads = one_part.forward_and_grads(method, theta, their, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12 * abs(theirs.y).max())
    for k, name in names.items():
        np.testing.assert_allclose(
            grads[k], theirs.grads[name], rtol=0, atol=1e-11 * (1 + abs(theirs.grads[name]).max())
        )
    np.testing.assert_allclose(weight_of(method, W, theta | their), theirs.merged(), rtol=0, atol=1e-12 * abs(W).max())
