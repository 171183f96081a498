"""One vector for all factors."""

import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.unilora import UniLoRA

TARGETS = "attn.q.weight attn.v.weight mlp.down.weight"


def adapter_of(**settings):
    return attach(tiny.model(), UniLoRA(**settings), targets=TARGETS).adapters[0]


@pytest.mark.parametrize(("r", "length"), [(2, 7), (3, 64), (1, 1000)])
def test_the_projection_has_orthonormal_columns(r, length):
    """All factors of all sites, as one vector, are P θ."""
    a = adapter_of(r=r, length=length).grouped()
    places, factors = (
        np.concatenate([own[f"{k}_{f}"].ravel() for site, own in a.items() if site for f in "AB"]) for k in "Is"
    )
    assert places.size == 2 * r * (24 + 24 + 24 + 12 + 40 + 24)
    P = np.zeros((places.size, length))
    P[np.arange(places.size), places] = factors
    used = np.minimum(np.bincount(places, minlength=length), 1)
    np.testing.assert_allclose(P.T @ P, np.diag(used), rtol=0, atol=1e-14)
    assert used.all() == (length <= places.size)
    counts = np.bincount(places, minlength=length)
    assert counts.max() - counts.min() == (places.size % length > 0)


def test_places_are_those_of_one_shuffle_over_all_sites_in_order():
    adapter = adapter_of(r=2, length=10, seed=3)
    drawn = np.repeat(np.arange(10), 59)  # of 592 elements
    rng = np.random.default_rng(3)
    drawn = np.concatenate([drawn, rng.choice(10, 2, replace=False)])
    rng.shuffle(drawn)
    for site, own in adapter.grouped().items():
        for name in ["I_A", "I_B"] if site else []:
            assert own[name].ravel().tolist() == drawn[: own[name].size].tolist()
            drawn = drawn[own[name].size :]
    assert not drawn.size and adapter.trained == {":theta"} and not UniLoRA.identity
    assert abs(adapter.arrays[":theta"]).max() <= 0.02


def test_matrices_of_another_rank_are_shuffled_with_the_others():
    patterns = {"layers.0.attn.q.weight": dict(r=5)}
    adapter = attach(tiny.model(), UniLoRA(r=2, length=10), targets=TARGETS, patterns=patterns).adapters[0].grouped()
    places = np.concatenate([own[f"I_{f}"].ravel() for site, own in adapter.items() if site for f in "AB"])
    assert adapter["layers.0.attn.q.weight"]["I_A"].shape == (5, 24) and places.size == 2 * 2 * 148 + 3 * 48
    assert np.ptp(np.bincount(places)) == 1  # 736 of 10 places


def test_other_targets_have_other_places():
    site = "layers.0.attn.q.weight"
    one = adapter_of(r=2, length=10).arrays[f"{site}:I_A"]
    other = attach(tiny.model(), UniLoRA(r=2, length=10), targets="attn.q.weight").adapters[0].arrays[f"{site}:I_A"]
    assert (one != other).any()


def test_the_vector_s_gradient_has_a_part_for_every_place():
    """dL/dθ_p = Σ over elements at p of s times dL/d(element), of A and of B."""
    rng = np.random.default_rng(0)
    W, x, c = (rng.standard_normal(s) for s in ((5, 4), (6, 4), (6, 5)))
    a = one_part.arrays(UniLoRA(r=2, length=7), one_part.site(W), rng, moved=1.0)
    theta = dict(theta=a.pop("theta"))
    _, grads = one_part.forward_and_grads(UniLoRA(r=2, length=7), theta, a, x, c, W)
    A, B = (a[f"s_{k}"] * theta["theta"][a[f"I_{k}"]] for k in "AB")
    G = c.T @ x
    want = np.zeros(7)
    for (i, k), g in np.ndenumerate(G @ A.T):
        want[a["I_B"][i, k]] += a["s_B"][i, k] * g
    for (k, j), g in np.ndenumerate(B.T @ G):
        want[a["I_A"][k, j]] += a["s_A"][k, j] * g
    np.testing.assert_allclose(grads["theta"], want, rtol=0, atol=1e-13 * abs(want).max())


def test_bad_settings_are_named():
    with pytest.raises(Bad, match="seed must be at least 0, found -1"):
        UniLoRA(seed=-1)
    with pytest.raises(Bad, match="length must be at least 1, found 0"):
        UniLoRA(length=0)


@pytest.mark.hf
@pytest.mark.parametrize(("out", "in_"), [(5, 4), (6, 11)])
@pytest.mark.parametrize(("r", "length", "seed"), [(3, 10, 42), (12, 37, 7), (2, 1000, 0)])
def test_places_output_gradient_and_merged_weight_are_those_of_peft(out, in_, r, length, seed):
    """But for the last bit of its factors, which are of float32."""
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    config = peft.UniLoraConfig(r=r, theta_d_length=length, proj_seed=seed, target_modules=["lin"], save_indices=True)
    theirs = one_part.Peft(config, W, b, x, c)
    method = UniLoRA(r=r, length=length, seed=seed)
    made = one_part.arrays(method, one_part.site(W), rng)
    state = {k.split(".lin.unilora_")[1]: v for k, v in theirs.state.items() if "indices" in k or "scales" in k}
    stored = {f"I_{k}": state[f"indices_{k}.default"] for k in "AB"} | {
        f"s_{k}": state[f"scales_{k}.default"] for k in "AB"
    }
    for name, a in stored.items():
        last = 0 if name.startswith("I") else np.spacing(a.astype(np.float32))
        assert made[name].shape == a.shape and (abs(made[name] - a) <= last).all()
    theta = dict(theta=theirs.params["unilora_theta_d"])
    y, grads = one_part.forward_and_grads(method, theta, stored, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    want = theirs.grads["unilora_theta_d"]
    np.testing.assert_allclose(grads["theta"], want, rtol=0, atol=1e-13 * abs(want).max())
    merged = theirs.merged()
    np.testing.assert_allclose(weight_of(method, W, theta | stored), merged, rtol=0, atol=1e-13 * abs(merged).max())


@pytest.mark.hf
def test_factors_are_those_of_float32():
    """1/√n rounded once is what torch's float32 gives, for every count that occurs."""
    import torch

    n = np.arange(1, 100_000)
    ours, theirs = (n**-0.5).astype(np.float32), torch.tensor(n).float().rsqrt().numpy()
    assert (abs(ours - theirs) <= np.spacing(ours)).all()
