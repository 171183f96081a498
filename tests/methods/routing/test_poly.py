import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.methods.routing.poly import Poly

IDS = np.array([1, 0, 1])


def setting(seed=0, **fields):
    rng = np.random.default_rng(seed)
    W, b, x = rng.standard_normal((6, 4)), rng.standard_normal(6), rng.standard_normal((3, 5, 4))
    method = Poly(**dict(r=3, n_tasks=2, n_skills=3, n_splits=2) | fields)
    return method, one_part.arrays(method, one_part.site(W), rng, moved=0.7), W, b, x


def by_hand(method, a, W, b, x, z):
    """Row by row, split by split, skill by skill; z (rows, splits, skills) are logits."""
    Q, K, r = method.n_splits, method.n_skills, method.r
    c, e = W.shape[1] // Q, W.shape[0] // Q
    y = np.empty((*x.shape[:2], W.shape[0]))
    for i in range(len(x)):
        p = 1 / (1 + np.exp(-z[i]))
        A, B = np.zeros((W.shape[1], r)), np.zeros((r, W.shape[0]))
        for q in range(Q):
            for k in range(K):
                w = p[q, k] / p[q].sum()
                A[q * c : (q + 1) * c] += w * a["A"][q, k]
                B[:, q * e : (q + 1) * e] += w * a["B"][q, k]
        y[i] = x[i] @ W.T + b + x[i] @ A @ B / r
    return y


@pytest.mark.parametrize("n_splits", [1, 2])
def test_every_row_has_the_weights_of_its_task(n_splits):
    method, a, W, b, x = setting(n_splits=n_splits)
    got = one_part.output(method, a, x, W, b, task_ids=IDS)
    z = a["Z"][IDS].reshape(3, n_splits, 3)
    np.testing.assert_allclose(got, by_hand(method, a, W, b, x, z), rtol=0, atol=1e-10)  # weights have 1e-12 below
    for i, t in enumerate(IDS):
        np.testing.assert_allclose(got[i], x[i] @ (W + method.of_task(t, **a)).T + b, rtol=0, atol=1e-13)


def test_training_samples_relaxed_bernoulli_gates():
    method, a, W, b, x = setting()
    got = one_part.output(method, a, x, W, b, task_ids=IDS, train=True, rng=np.random.default_rng(3))
    u = np.random.default_rng(3).random((3, 2, 3))
    z = a["Z"][IDS].reshape(3, 2, 3) + np.log(u / (1 - u))
    np.testing.assert_allclose(got, by_hand(method, a, W, b, x, z), rtol=0, atol=1e-10)


def test_bad_tasks_and_splits_are_named():
    method, a, W, b, x = setting()
    for ids, word in [
        ([0, 2, 1], "0 … 1, found 0 … 2"),
        ([-1, 0, 1], "found -1 … 1"),
        ([0, 1], "one for each of 3 rows"),
    ]:
        with pytest.raises(Bad, match=word):
            one_part.output(method, a, x, W, b, task_ids=np.array(ids))
    model = tiny.model()
    batch = tiny.example(model)
    object.__setattr__(batch, "task_ids", None)
    with pytest.raises(Bad, match="task_ids"):
        attach(model, Poly(n_tasks=2)).logits(batch)
    assert np.isfinite(attach(model, Poly(n_tasks=1)).logits(batch)).all()
    with pytest.raises(Bad, match=r"n_splits must divide both widths, 24 and 24, found 5, at layers.0.attn.q.weight"):
        attach(model, Poly(n_splits=5))
    with pytest.raises(Bad, match="does not merge"):
        merge(attach(model, Poly()))
    with pytest.raises(Bad, match="n_skills"):
        Poly(n_skills=0)


def test_a_classifier_of_one_vector_a_row():
    model = tiny.model("bert")
    adapted = attach(model, Poly(r=2, n_tasks=2), targets="score.weight")
    moved = adapted.replace({k: v + 0.1 for k, v in adapted.theta.items()})
    assert moved.logits(tiny.example(model)).shape == (3, 5)


@pytest.mark.hf
@pytest.mark.parametrize("n_splits", [1, 2])
def test_output_and_gradients_are_those_of_peft(n_splits):
    import peft
    import torch

    method, _, W, b, x = setting(n_splits=n_splits)
    c = np.random.default_rng(1).standard_normal((3, 5, 6))
    config = peft.PolyConfig(r=3, n_tasks=2, n_skills=3, n_splits=n_splits, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c, task_ids=torch.tensor(IDS))
    names = dict(A="poly_lora_A", B="poly_lora_B", Z="poly_router.module_logits")
    theta = {k: theirs.params[v] for k, v in names.items()}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b, task_ids=IDS)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13)
    for ours, name in names.items():
        np.testing.assert_allclose(grads[ours], theirs.grads[name], rtol=0, atol=1e-13)
