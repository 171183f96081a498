import numpy as np
from scipy import special

from minipeft.engine import gradcheck, ops
from minipeft.engine.special import digamma, lgamma

X = np.array([[1e-3, 0.1, 0.5, 1.0], [1.4616, 2.0, 7.7, 100.0]])


def test_they_are_those_of_scipy():
    """To 10⁻¹² of 1 where the value is of that size, and to some rounding of what is summed else."""
    for ours, theirs in ((lgamma, special.gammaln), (digamma, special.digamma)):
        np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-13, atol=2e-12)


def test_the_one_is_the_derivative_of_the_other_and_both_have_gradients():
    for f in (lgamma, digamma):
        gradcheck(lambda t, f=f: ops.sum(f(t["x"])), dict(x=X[1]))
    step = 1e-5
    slope = (lgamma(X[1] + step) - lgamma(X[1] - step)) / (2 * step)
    np.testing.assert_allclose(slope, digamma(X[1]), rtol=1e-8, atol=1e-8)


def test_they_keep_their_type():
    x = np.array([0.3, 2.0], np.float32)
    assert lgamma(x).dtype == digamma(x).dtype == np.float32
