"""Decompositions on the host that other libraries draw at random."""

import numpy as np
import pytest

from minipeft.engine.factors import clusters, randomised


@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_a_randomised_decomposition_is_exact_where_there_is_no_rest(shape):
    rng = np.random.default_rng(0)
    M = rng.standard_normal((shape[0], 4)) @ rng.standard_normal((4, shape[1]))
    U, S, Vt = randomised(M, rng.standard_normal((9, 4)))
    np.testing.assert_allclose((U * S) @ Vt, M, rtol=0, atol=1e-12)
    np.testing.assert_allclose(S, np.linalg.svd(M)[1][:4], rtol=1e-12)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(4), rtol=0, atol=1e-13)
    np.testing.assert_allclose(U.T @ U, np.eye(4), rtol=0, atol=1e-13)


def test_clusters_that_lie_apart_are_found():
    rng = np.random.default_rng(0)
    which = rng.integers(0, 3, 60)
    X = 20.0 * np.eye(3)[which] + rng.standard_normal((60, 3))
    assert any(len(set(zip(which, clusters(X, 3, 10, seed)))) == 3 for seed in range(5))


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (20, 20)])
def test_randomised_is_that_of_torch(shape):
    import torch

    from minipeft.torch_random import TorchGenerator

    M = np.random.default_rng(0).standard_normal(shape)
    torch.manual_seed(3)
    theirs = torch.svd_lowrank(torch.tensor(M), q=5, niter=2)
    U, S, Vt = randomised(M, TorchGenerator(3).normal((min(shape), 5), dtype=np.float64))
    np.testing.assert_allclose(S, theirs[1].numpy(), rtol=1e-12)
    for ours, want in ((U, theirs[0].numpy()), (Vt.T, theirs[2].numpy())):
        sign = np.sign((ours * want).sum(axis=0))
        np.testing.assert_allclose(ours * sign, want, rtol=0, atol=1e-10)


@pytest.mark.hf
def test_clusters_are_those_of_scikit_learn():
    """The last ones have more clusters than places: some become empty on the way."""
    from sklearn.cluster import KMeans

    rng, few = np.random.default_rng(0), 0
    for n in range(200):
        m, q, k = int(rng.integers(8, 60)), int(rng.integers(1, 6)), int(rng.integers(1, 8))
        X = rng.standard_normal((m, q)).astype(np.float32)
        if n > 150:
            X = X[rng.integers(0, k + 1, m)] + (1e-2 * rng.standard_normal((m, q))).astype(np.float32)
        steps = int(rng.integers(1, 12))
        want = KMeans(n_clusters=k, init="random", n_init=1, max_iter=steps, random_state=n).fit_predict(X)
        assert np.array_equal(clusters(X, k, steps, n), want), n
        few += len(set(want)) == k
    assert few > 150
