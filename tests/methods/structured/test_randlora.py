"""Full rank by many random products."""

import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.drawing import Facts, draw
from minipeft.method import weight_of
from minipeft.methods.structured.randlora import RandLoRA

KINDS = ["dense", "sparse", "very_sparse"]
SHAPES = [(20, 12), (9, 14), (11, 11)]


def drawn(method, out, in_, seed=0, moved=0.0):
    rng = np.random.default_rng(seed)
    return one_part.arrays(method, one_part.site(np.zeros((out, in_))), rng, moved=moved)


@pytest.mark.parametrize("r", [1, 3, 5, 40])
@pytest.mark.parametrize(("out", "in_"), SHAPES)
def test_the_change_has_full_rank_whatever_r(out, in_, r):
    m = min(out, in_)
    a = drawn(RandLoRA(r=r), out, in_, moved=0.5)
    assert a["Lambda"].shape == (r, -(-m // r)) and a["Gamma"].shape == (-(-m // r), m)
    assert np.linalg.matrix_rank(weight_of(RandLoRA(r=r), np.zeros((out, in_)), a)) == m


def test_one_scaled_row_meets_one_column():
    """λ of row k and matrix c is at place k n + c, where column (b, i) with b r + i = k n + c is."""
    a = drawn(RandLoRA(r=3, alpha=6.0), 10, 7, moved=0.5)  # n = 3
    a["Lambda"] = np.zeros((3, 3))
    a["Lambda"][1, 2] = 1.0  # place 5 = 1·3 + 2
    want = 2.0 * np.outer(a["B"][:, 1, 2], a["A"][1, 0] * a["Gamma"][2])
    np.testing.assert_allclose(weight_of(RandLoRA(r=3, alpha=6.0), np.zeros((10, 7)), a), want, rtol=0, atol=1e-14)
    a["Lambda"] = np.zeros((3, 3))
    a["Lambda"][2, 0] = 1.0  # place 6 = 2·3 + 0
    want = 2.0 * np.outer(a["B"][:, 2, 0], a["A"][2, 0] * a["Gamma"][0])
    np.testing.assert_allclose(weight_of(RandLoRA(r=3, alpha=6.0), np.zeros((10, 7)), a), want, rtol=0, atol=1e-14)


def test_sites_share_one_pair_cut_to_their_shape():
    model = tiny.model()  # q is 24 × 24, v 12 × 24, down 24 × 40
    adapter = attach(model, RandLoRA(r=5), targets="attn.q.weight attn.v.weight mlp.down.weight").adapters[0]
    A, B = adapter.arrays[":A"], adapter.arrays[":B"]
    assert A.shape == (5, 1, 24) and B.shape == (40, 5, 5) and not {":A", ":B"} & adapter.trained
    own = {k: a + 1 for k, a in adapter.grouped()["layers.1.attn.v.weight"].items()}
    assert own["Lambda"].shape == (5, 3) and own["Gamma"].shape == (3, 12) and (own["Gamma"] == 1 + 1 / 12).all()
    W = np.zeros((12, 24))
    got = weight_of(adapter.method, W, dict(A=A, B=B, **own))
    assert np.array_equal(got, weight_of(adapter.method, W, dict(A=A[:, :, :12], B=B[:24, :3], **own)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_pair_depends_on_the_seed_alone_and_has_deviation_1(kind):
    def pair(seed, rng):
        facts = Facts(
            RandLoRA(r=4, bases=kind, seed=seed), one_part.site(np.zeros((60, 50))), np.random.default_rng(rng)
        )
        return [a for a, _ in draw(facts, shared=True).values()]

    A, B = pair(1, 0)
    assert np.array_equal(A, pair(1, 9)[0]) and np.array_equal(B, pair(1, 9)[1]) and (pair(2, 0)[1] != B).any()
    for a in (A, B):
        assert abs(a.std(ddof=1) - 1) < (2**-8 if kind == "dense" else 1e-6)
        assert len(np.unique(a)) == 3 if kind != "dense" else len(np.unique(a)) > 90
        zeros = (a == 0).mean()
        assert abs(zeros - dict(dense=0, sparse=2 / 3, very_sparse=1 - 50**-0.5)[kind]) < 0.1


@pytest.mark.hf
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("out", "in_"), SHAPES)
@pytest.mark.parametrize(("r", "seed"), [(3, 0), (5, 7), (30, 2**40 + 1)])
def test_the_pair_output_gradients_and_merged_weight_are_those_of_peft(kind, out, in_, r, seed):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    how = dict(sparse=kind == "sparse", very_sparse=kind == "very_sparse")
    config = peft.RandLoraConfig(r=r, randlora_alpha=7, projection_prng_key=seed, target_modules=["lin"], **how)
    theirs = one_part.Peft(config, W, b, x, c)
    method = RandLoRA(r=r, alpha=7.0, bases=kind, seed=seed)
    pair = {k: a.astype(float) for k, (a, _) in draw(Facts(method, one_part.site(W), rng), shared=True).items()}
    for name, a in pair.items():  # bit for bit
        assert (a == theirs.state[f"base_model.randlora_{name}.default"]).all()
    theta = dict(Lambda=theirs.params["randlora_lambda"], Gamma=theirs.params["randlora_gamma"])
    y, grads = one_part.forward_and_grads(method, theta, pair, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    for ours, g in grads.items():
        name = f"randlora_{ours.lower()}"
        np.testing.assert_allclose(g, theirs.grads[name], rtol=0, atol=1e-13 * abs(theirs.grads[name]).max())
    merged = theirs.merged()
    np.testing.assert_allclose(weight_of(method, W, theta | pair), merged, rtol=0, atol=1e-13 * abs(merged).max())
