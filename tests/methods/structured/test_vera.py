import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.drawing import Facts, draw
from minipeft.methods.structured.vera import VeRA


def test_sites_share_one_pair_cut_to_their_shape():
    model = tiny.model()  # q is 24 × 24, v is 12 × 24
    adapter = attach(model, VeRA(r=3, d_initial=0.5), targets="attn.q.weight attn.v.weight mlp.down.weight").adapters[0]
    A, B = adapter.arrays[":A"], adapter.arrays[":B"]
    assert A.shape == (3, 40) and B.shape == (24, 3)
    assert not {":A", ":B"} & adapter.trained
    W, d, b = model.params["layers.1.attn.v.weight"], np.array([1.0, 2, 3]), np.arange(12.0)
    got = adapter.method.change(A=A, B=B, lambda_d=d, lambda_b=b).onto(W)
    expected = W.copy()
    for i in range(12):
        for j in range(24):
            expected[i, j] += b[i] * sum(B[i, k] * d[k] * A[k, j] for k in range(3))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)
    assert (adapter.arrays["layers.0.attn.q.weight:lambda_d"] == 0.5).all()


def test_the_pair_depends_on_the_seed_alone():
    def pair(seed, rng):
        facts = Facts(VeRA(r=3, seed=seed), one_part.site(np.zeros((5, 4))), np.random.default_rng(rng))
        return [a for a, is_trained in draw(facts, shared=True).values() if not is_trained]

    assert all((a == b).all() for a, b in zip(pair(1, 0), pair(1, 9)))
    assert (pair(1, 0)[0] != pair(2, 0)[0]).any()
    A, B = pair(1, 0)
    assert abs(A).max() <= (6 / 4) ** 0.5 and abs(B).max() <= (6 / 3) ** 0.5


@pytest.mark.hf
def test_the_pair_output_and_gradients_are_those_of_peft():
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((5, 4), (5,), (2, 3, 4), (2, 3, 5)))
    theirs = one_part.Peft(peft.VeraConfig(r=3, target_modules=["lin"], projection_prng_key=7), W, b, x, c)
    method = VeRA(r=3, seed=7)
    stored = {k: a.astype(float) for k, (a, _) in draw(Facts(method, one_part.site(W), rng), shared=True).items()}
    state = {k.split("vera_")[-1].split(".")[0]: v for k, v in theirs.state.items() if k.startswith("base_model.vera_")}
    assert (stored["A"] == state["A"]).all() and (stored["B"] == state["B"]).all()
    theta = dict(lambda_d=theirs.params["vera_lambda_d"], lambda_b=theirs.params["vera_lambda_b"])
    y, grads = one_part.forward_and_grads(method, theta, stored, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13)
    for name, g in grads.items():
        np.testing.assert_allclose(g, theirs.grads[f"vera_{name}"], rtol=0, atol=1e-13)
