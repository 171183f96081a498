"""What a base weight is held in is asked in one place."""

import numpy as np
import pytest

from minipeft.engine import ops
from minipeft.engine.bfloat16 import Bfloat16, bfloat16
from minipeft.engine.mapped import Mapped
from minipeft.engine.weight import Weight, again, factor, form, held_arrays, widened
from minipeft.errors import Bad
from minipeft.quantize import FourBits, quantize

A = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
HELD = {
    "array": A,
    "bfloat16": bfloat16(A),
    "nf4": quantize(A, 16),
    "mapped": Mapped(A, "A"),
    "mapped bits": Mapped(bfloat16(A).values, "A", bits=True),
    "mapped in bfloat16": Mapped(A, "A", kept="bfloat16"),
}
FORMS = dict(zip(HELD, ("", "bfloat16", "nf4", "", "", "bfloat16")))


@pytest.mark.parametrize("name", HELD)
def test_all_of_them_answer_alike(name):
    W = HELD[name]
    assert form(W) == FORMS[name] and isinstance(W, Weight) == (name != "array")
    wide = widened(W)
    assert type(wide) is np.ndarray and wide.shape == W.shape == (6, 8) and wide.dtype == W.dtype == np.float32
    rounds = 0.5 if form(W) == "nf4" else 0 if name in ("array", "mapped") else 2.0**-8
    assert abs(wide - A).max() <= rounds * abs(A).max() and W.size == A.size and len(W.shape) == 2
    x = np.ones((2, 8), np.float32)
    np.testing.assert_array_equal(
        ops.linear(x, factor(W)), ops.linear(x, bfloat16(wide) if form(W) == "bfloat16" else wide)
    )
    new = again(A + 1, W)
    assert (type(new) is Bfloat16) == (form(W) == "bfloat16") and abs(widened(new) - A - 1).max() <= 2.0**-7
    held = held_arrays(W)
    assert held and all(isinstance(a, np.ndarray) for a in held.values())
    assert ("codes" in held) == (type(W) is FourBits) and ("values" in held) == (form(W) == "bfloat16")


def test_a_mapped_weight_is_the_file_itself_where_the_types_are_one():
    assert np.shares_memory(widened(Mapped(A, "A")), A) and not widened(Mapped(A, "A")).flags.writeable
    bits = bfloat16(A).values
    assert np.shares_memory(factor(Mapped(bits, "A", bits=True, kept="bfloat16")).values, bits)
    wide = Mapped(A, "A").used_in(np.float64)
    assert wide.dtype == np.float64 == widened(wide).dtype and widened(wide) is widened(wide)  # converted once


def test_layouts_are_views():
    W = Mapped(A, "A")
    np.testing.assert_array_equal(widened(W.T), A.T)
    np.testing.assert_array_equal(widened(W.reshape(4, 12)), A.reshape(4, 12))
    assert W.T.shape == (8, 6) and len(W) == 6 and W.ndim == 2 and np.asarray(W, np.float64).dtype == np.float64
    np.testing.assert_array_equal(W[1:3], A[1:3])


@pytest.mark.parametrize(("number", "kept"), [(np.nan, None), (np.inf, None), (3.0e38, np.float16)])
def test_numbers_are_checked_when_they_are_used(number, kept):
    B = A.copy()
    B[1, 2] = number
    W = Mapped(B, "folder: x.weight", kept=kept)
    assert W.T.shape == (8, 6)
    with pytest.raises(
        Bad, match=r"^folder: x\.weight has 1 of 48 weights that are NaN, infinite or beyond the range of"
    ):
        widened(W)


def test_a_weight_says_what_it_stands_for():
    class Nothing(Weight):
        form = "nothing"

    for ask in (Nothing().dequantize, Nothing().to_arrays):
        with pytest.raises(TypeError, match="Nothing does not say"):
            ask()
