"""Circulant blocks."""

import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.c3a import C3A


def test_every_block_is_circulant_and_its_first_row_the_kernel():
    rng = np.random.default_rng(0)
    W, k = rng.standard_normal((6, 9)), rng.standard_normal((2, 3, 3))
    change = weight_of(C3A(block=3), W, dict(k=k)) - W
    for p in range(2):
        for q in range(3):
            block = change[3 * p : 3 * p + 3, 3 * q : 3 * q + 3]
            for row in range(3):  # moved right by one in each row
                np.testing.assert_allclose(block[row], np.roll(k[p, q], row) / 9, rtol=0, atol=1e-15)


def test_it_is_a_circular_convolution_by_fourier_transforms():
    """The form of the paper and of PEFT."""
    rng = np.random.default_rng(0)
    W, k, x = rng.standard_normal((8, 12)), rng.standard_normal((2, 3, 4)), rng.standard_normal((5, 12))
    blocks = np.fft.ifft(x.reshape(5, 3, 4))[:, None] * np.fft.fft(k)
    want = x @ W.T + np.fft.fft(blocks.sum(axis=2)).real.reshape(5, 8) / 12
    np.testing.assert_allclose(one_part.output(C3A(block=4), dict(k=k), x, W), want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("start", "bound"), [("xavier", (6 / 20) ** 0.5), ("kaiming", 12**-0.5)])
def test_how_kernels_start(start, bound):
    a = one_part.arrays(C3A(block=4, start=start), one_part.site(np.zeros((8, 12))), np.random.default_rng(0))["k"]
    many = [
        one_part.arrays(C3A(block=4, start=start), one_part.site(np.zeros((8, 12))), np.random.default_rng(s))
        for s in range(20)
    ]
    assert a.shape == (2, 3, 4) and 0.97 * bound < max(abs(m["k"]).max() for m in many) <= bound
    assert not C3A().identity and C3A(start="zero").identity
    assert not one_part.arrays(C3A(block=4, start="zero"), one_part.site(np.zeros((8, 12))), np.random.default_rng(0))[
        "k"
    ].any()


def test_blocks_that_do_not_divide_are_refused():
    with pytest.raises(Bad, match=r"c3a: block must divide 8 and 12, both widths, found 3, at layers.0.attn.q.weight"):
        one_part.arrays(C3A(block=3), one_part.site(np.zeros((8, 12))), np.random.default_rng(0))


@pytest.mark.hf
@pytest.mark.parametrize("block", [2, 4])
def test_output_and_merged_weight_are_those_of_peft(block):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((8, 12), (8,), (2, 3, 12), (2, 3, 8)))
    theirs = one_part.Peft(peft.C3AConfig(block_size=block, target_modules=["lin"]), W, b, x, c)
    k = dict(k=theirs.params["c3a_kernel"])
    y, grads = one_part.forward_and_grads(C3A(block=block), k, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=64 * 2.0**-24)  # theirs is computed in float32
    np.testing.assert_allclose(grads["k"], theirs.grads["c3a_kernel"], rtol=0, atol=64 * 2.0**-24)
    np.testing.assert_allclose(weight_of(C3A(block=block), W, k), theirs.merged(), rtol=0, atol=64 * 2.0**-24)
