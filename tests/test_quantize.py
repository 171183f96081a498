from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from minipeft.checkpoints.files import read_tensors
from minipeft.errors import Bad
from minipeft.quantize import (
    CODEBOOKS,
    FP4_CODEBOOK,
    HELD,
    NF4_CODEBOOK,
    EightBits,
    FourBits,
    dynamic_map,
    four_bit_float,
    normal_float,
    quantize,
)  # fmt: skip

RECORDED = read_tensors(Path(__file__).parent / "data" / "nf4.safetensors")
CASES = sorted({k.split("/")[0] for k in RECORDED})

T = NF4_CODEBOOK.astype(float)
GAP = max(np.diff(T)) / 2  # the farthest a value in [−1, 1] can be from the code book

sizes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12)
weights = sizes.flatmap(lambda s: hnp.arrays(np.float32, s, elements=st.floats(-100, 100, width=32)))


def unpacked(q):
    """Codes one a number, the high half of each byte first."""
    return [c for byte in q.codes for c in (byte >> 4, byte & 15)][: q.size]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- the code book ----------------------------------------------------------------------------------------------------


def test_facts_of_the_code_book():
    assert len(T) == 16 and (np.diff(T) > 0).all() and (T[0], T[7], T[15]) == (-1, 0, 1)
    assert (T < 0).sum() == 7 and (T > 0).sum() == 8
    assert pytest.approx(0.15190, abs=1e-5) == GAP
    positive, negative = norm.cdf(T[7:] * norm.ppf(1 - (1 / 30 + 1 / 32) / 2)), norm.cdf(T[:8] * norm.ppf(1 - (1 / 30 + 1 / 32) / 2))  # fmt: skip
    assert np.allclose(np.diff(positive), np.diff(positive)[0], atol=1e-6)  # evenly spaced in probability
    assert np.allclose(np.diff(negative), np.diff(negative)[0], atol=1e-6)
    assert np.allclose(normal_float(), T, atol=2e-7)


def test_facts_of_the_dynamic_map():
    d = dynamic_map().astype(float)
    assert len(d) == 256 and (np.diff(d) > 0).all() and d[-1] == 1 and d[0] > -1 and d[127] == 0
    assert np.allclose(d[:127], -d[128:255][::-1])
    for i in range(7):  # 2^i values in decade i, of [0.1, 1] · 10^(i−6)
        decade = d[(d > 0.1 * 10.0 ** (i - 6)) & (d < 10.0 ** (i - 6))]
        assert len(decade) == 2**i


# --- laws of the quantisation -----------------------------------------------------------------------------------------


@given(weights, st.integers(1, 70))
def test_every_value_takes_the_nearest_code_of_its_block(W, block):
    q = quantize(W, block)
    flat, out, codes = W.reshape(-1).astype(float), q.dequantize().reshape(-1), unpacked(q)
    assert q.dequantize().shape == W.shape and q.absmax.size == -(-W.size // block)
    for b in range(q.absmax.size):
        mine = slice(b * block, min((b + 1) * block, W.size))
        c = float(q.absmax[b])
        assert c == abs(flat[mine]).max()
        for x, got, code in zip(flat[mine], out[mine], codes[mine]):
            assert got == np.float32(NF4_CODEBOOK[code] * np.float32(c))
            assert abs(got - x) <= (min(abs(T - x / c)) + 1e-6 if c > 1e-30 else 1e-6) * max(c, 1e-30)
            assert abs(got - x) <= (GAP + 1e-6) * c + 1e-37


@given(st.integers(0, 99), st.sampled_from([np.float16, np.float32, np.float64]))
def test_quantising_again_changes_nothing(seed, dtype):
    W = normal(7, 30, seed=seed).astype(dtype)
    once = quantize(W).dequantize()
    again = quantize(once).dequantize()
    assert once.dtype == dtype and (again == once).all()


@pytest.mark.parametrize("W", [np.zeros((3, 70)), np.zeros(0), np.zeros((0, 5)), np.float64(-2.5), np.full(5, 1e-40)])
@pytest.mark.parametrize("double", [False, True])
def test_zeros_empties_and_scalars(W, double):
    W = np.asarray(W)
    out = quantize(W, double=double).dequantize()
    assert out.shape == W.shape and np.allclose(out, W, atol=1e-38, rtol=0)


@given(st.integers(0, 99), st.integers(1, 700))
def test_double_quantisation_keeps_each_constant_to_half_a_step(seed, blocks):
    W = normal(blocks, 8, seed=seed)
    plain, double = quantize(W, 8), quantize(W, 8, double=True)
    assert (plain.codes == double.codes).all() and double.absmax.dtype == np.uint8
    c, mean = plain.absmax.astype(float), float(plain.absmax.mean(dtype=np.float64))
    d = dynamic_map().astype(float)
    for start in range(0, blocks, 256):
        part = c[start : start + 256] - mean
        a = abs(part).max()
        nearest = abs(part[:, None] / a - d).min(axis=1) * a if a else part
        got = double.constants()[start : start + 256]
        assert (abs(got - c[start : start + 256]) <= nearest + 1e-6 * (mean + a)).all()


def test_bits_for_each_number():
    W = normal(1024, 512)
    assert 8 * quantize(W).nbytes / W.size == 4.5
    assert 8 * quantize(W, double=True).nbytes / W.size == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)


def test_a_normal_weight_loses_about_a_tenth():
    """The error of 16 nearly equally likely values: known to be 0.09 to 0.1 of the weight's size."""
    W = normal(256, 256)
    lost = np.sqrt(((quantize(W).dequantize() - W) ** 2).mean() / (W**2).mean())
    assert 0.08 < lost < 0.11


@given(weights, st.integers(1, 70), st.booleans())
def test_arrays_stand_for_all_of_it(W, block, double):
    q = quantize(W, block, double)
    again = FourBits.from_arrays(q.to_arrays())
    assert (again.shape, again.block, again.dtype, again.double) == (q.shape, q.block, q.dtype, double)
    assert again.dequantize().tobytes() == q.dequantize().tobytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop("codes"), "expected arrays"),
        (lambda a: a.update(more=np.zeros(1)), "expected arrays"),
        (lambda a: a.update(shape=np.array([-1, 3])), "shape must be a vector of lengths"),
        (lambda a: a.update(shape=np.array([4.0, 3.0])), "shape must be a vector of lengths"),
        (lambda a: a.update(shape=np.array([4, 4])), "codes of shape .* must be uint8"),
        (lambda a: a.update(block=np.array(0)), "block must be one positive integer"),
        (lambda a: a.update(codes=a["codes"][:-1]), "codes of shape"),
        (lambda a: a.update(absmax=a["absmax"].astype(np.float64)), "absmax of shape .* must be float32"),
    ],
)
def test_arrays_that_do_not_fit(change, says):
    arrays = quantize(normal(4, 3)).to_arrays()
    change(arrays)
    with pytest.raises(Bad, match=says):
        FourBits.from_arrays(arrays)


def test_refuses():
    with pytest.raises(Bad, match="block must be at least 1, found 0"):
        quantize(normal(3), 0)
    with pytest.raises(Bad, match="expected an array of floats, found int64"):
        quantize(np.arange(3))
    for poison in (np.nan, np.inf, 1e300):
        with pytest.raises(Bad, match="not finite"), np.errstate(over="ignore"):
            quantize(np.array([1.0, poison]))


# --- FP4 and eight bits -------------------------------------------------------------------------------------------------


def test_fp4_is_a_sign_two_bits_of_exponent_and_one_of_mantissa():
    twelfths = [0, 1 / 16, 8, 12, 4, 6, 2, 3]
    np.testing.assert_allclose(four_bit_float() * 12, [*twelfths, *(-x for x in twelfths)], rtol=1e-15)
    assert FP4_CODEBOOK.dtype == np.float32


def test_fp4_takes_the_nearest_and_on_a_midpoint_the_lower():
    """All the values, each side of every midpoint, and the midpoints."""
    t = np.unique(FP4_CODEBOOK)
    for lower, upper in pairwise(t):
        middle = (lower + upper) / np.float32(2)
        for x, want in ((lower, lower), (upper, upper), (middle, lower), (np.nextafter(middle, np.float32(2)), upper)):
            q = quantize(np.array([x, 1.0, -1.0], np.float32), code="fp4")
            assert q.dequantize()[0] == want


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 99))
def test_eight_bits_are_off_by_half_a_step_of_the_row(rows, columns, seed):
    W = np.random.default_rng(seed).standard_normal((rows, columns)) * 10.0 ** np.arange(rows)[:, None]
    q = quantize(W, code="int8")
    largest = np.abs(W.astype(np.float16).astype(np.float32)).max(axis=1)
    assert q.codes.dtype == np.int8 and (q.absmax == largest).all() and q.dtype == W.dtype
    assert (np.abs(q.codes).max(axis=1) == 127).all()
    half = 2.0**-11 * np.abs(W)  # W is rounded to float16 first
    assert (np.abs(q.dequantize() - W) <= largest[:, None] * (1 / 254 + 1e-6) + half).all()


def test_a_row_of_zeros_stays_one_and_an_empty_matrix_is_one():
    q = quantize(np.array([[0.0, 0.0], [1.0, -2.0]]), code="int8")
    assert q.codes.tolist() == [[0, 0], [64, -127]] and not q.dequantize()[0].any()
    assert quantize(np.zeros((3, 0)), code="int8").dequantize().shape == (3, 0)


@pytest.mark.parametrize("code", HELD)
def test_each_form_is_stored_and_read_and_is_read_only(code):
    W = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
    q = quantize(W, code=code)
    again = HELD[code].from_arrays(q.to_arrays())
    assert type(again) is type(q) and again.form == code and (again.dequantize() == q.dequantize()).all()
    assert q.astype(np.float64).dequantize().dtype == np.float64
    for a in (q.codes, q.absmax):
        with pytest.raises(ValueError):
            a[...] = 0
    if code in CODEBOOKS:
        assert quantize(W, double=True, code=code).form == f"{code}-double"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (dict(codes=np.zeros((2, 3), np.uint8)), "expected codes"),
        (dict(codes=np.zeros(6, np.int8)), "expected codes"),
        (dict(absmax=np.zeros(3, np.float32)), "expected absmax"),
        (dict(absmax=np.zeros(2)), "expected absmax"),
        (dict(more=np.zeros(2)), "expected arrays"),
    ],
)
def test_arrays_of_eight_bits_that_do_not_fit(change, line):
    with pytest.raises(Bad, match=line):
        EightBits.from_arrays(quantize(np.ones((2, 3), np.float32), code="int8").to_arrays() | change)


def test_what_eight_bits_cannot_hold():
    with pytest.raises(Bad, match="int8: expected a matrix"):
        quantize(np.ones(3), code="int8")
    with pytest.raises(Bad, match="not finite in float16"):
        quantize(np.array([[1e6]]), code="int8")


# --- bitsandbytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_bitsandbytes_made_the_same(name):
    case = {k.split("/")[1]: v for k, v in RECORDED.items() if k.startswith(name + "/")}
    q = quantize(case["W"], int(case["block"]))
    assert (q.codes == case["codes"]).all() and (q.absmax == case["absmax"]).all()
    assert (q.dequantize() == case["values"]).all()


def test_recorded_cases_are_there():
    assert CASES == ["blocks", "matrix", "uneven"] and RECORDED["uneven/W"].size % int(RECORDED["uneven/block"])


@pytest.mark.hf
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(64, 64), (24, 40), (3, 128), (1, 4096)])
def test_bitsandbytes_makes_the_same(shape, dtype):
    import bitsandbytes.functional as bnb
    import torch

    W = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    packed, state = bnb.quantize_4bit(W, blocksize=64, quant_type="nf4")
    q = quantize(W.numpy())
    assert (q.codes == packed.reshape(-1).numpy()).all() and (q.absmax == state.absmax.numpy()).all()
    assert (q.dequantize() == bnb.dequantize_4bit(packed, state).numpy()).all()
    assert (state.code.numpy() == NF4_CODEBOOK).all()


@pytest.mark.hf
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(64, 64), (24, 40), (3, 128), (1, 4096)])
def test_bitsandbytes_makes_the_same_of_fp4(shape, dtype):
    import bitsandbytes.functional as bnb
    import torch

    W = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    packed, state = bnb.quantize_4bit(W, blocksize=64, quant_type="fp4")
    q = quantize(W.numpy(), code="fp4")
    assert (q.codes == packed.reshape(-1).numpy()).all() and (q.absmax == state.absmax.numpy()).all()
    assert (q.dequantize() == bnb.dequantize_4bit(packed, state).numpy()).all()
    assert (state.code.numpy() == FP4_CODEBOOK).all()


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(64, 64), (24, 40), (3, 128), (1, 4096)])
def test_bitsandbytes_makes_the_same_of_eight_bits(shape):
    import bitsandbytes.functional as bnb
    import torch

    W = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    codes, absmax, _ = bnb.int8_vectorwise_quant(W.half())
    q = quantize(W.numpy(), code="int8")
    assert (q.codes == codes.numpy()).all() and (q.absmax == absmax.numpy()).all()
    assert (q.dequantize() == bnb.int8_vectorwise_dequant(codes, absmax).numpy()).all()


@pytest.mark.hf
def test_the_maps_are_those_of_bitsandbytes():
    import bitsandbytes.functional as bnb

    assert np.allclose(dynamic_map(), bnb.create_dynamic_map().numpy(), rtol=2e-7, atol=0)  # it rounds between steps


@pytest.mark.hf
def test_recording_again_gives_the_same():
    from record.record_nf4 import record

    made = record()
    assert made.keys() == RECORDED.keys() and all((made[k] == RECORDED[k]).all() for k in made)
