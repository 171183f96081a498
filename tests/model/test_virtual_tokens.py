"""Virtual tokens that count in the loss: their labels, and what each counts."""

import numpy as np
import pytest

from minipeft.conformance import tiny
from minipeft.engine import gradcheck
from minipeft.model.ends import loss_of
from minipeft.model.tokens import Tokens

LABELS = np.array([[4, 5, -100], [6, -100, 7]])


def tokens():
    return Tokens(3, labels=LABELS)


def test_labels_and_weights_stand_where_the_tokens_do():
    made, h = tokens(), np.zeros((2, 3, 5))
    h = made.insert(h, np.ones((2, 5)), at=1, labels=[8, -100], weights=[0.5, 2.0])
    assert made.labels.tolist() == [[4, 8, -100, 5, -100], [6, 8, -100, -100, 7]]
    assert made.weights.tolist() == [[1, 0.5, 2, 1, 1]] * 2
    made.insert(h, np.ones((1, 5)))
    assert made.labels[:, 0].tolist() == [-100, -100] and made.weights.tolist() == [[1, 1, 0.5, 2, 1, 1]] * 2


def test_without_weights_there_are_none():
    made = tokens()
    made.insert(np.zeros((2, 3, 5)), np.ones((2, 5)))
    assert made.weights is None


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_every_label_counts_its_weight(family):
    """In a decoder alone the label of a token belongs to what stands before it; the mean is over all labels."""
    rng, arch = np.random.default_rng(0), tiny.arch(family)
    x, w = rng.standard_normal((2, 3, arch.vocab)), rng.uniform(0.5, 2, (2, 3))
    moved = int(family == "llama")
    total, n = 0.0, 0
    for b in range(2):
        for t in range(moved, 3):
            if LABELS[b, t] >= 0:
                row = x[b, t - moved]
                total, n = total + w[b, t] * (np.log(np.exp(row).sum()) - row[LABELS[b, t]]), n + 1
    np.testing.assert_allclose(loss_of(arch, x, LABELS, w), total / n, rtol=1e-13)
    one = loss_of(arch, x, LABELS, np.ones((2, 3)))
    np.testing.assert_allclose(one, loss_of(arch, x, LABELS), rtol=1e-13)
    assert loss_of(arch, x.astype(np.float32), LABELS, w).dtype == np.float32
    gradcheck(lambda theta: loss_of(arch, theta["x"], LABELS, w), {"x": x})
    assert loss_of(arch, x, np.full((2, 3), -100), w) == 0
