import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from minipeft.checkpoints.files import read_json
from minipeft.errors import Bad
from minipeft.torch_random import LARGE, UNSEEDED, TorchGenerator, _inside_out, _swapped, narrow

RECORDED = read_json(Path(__file__).parent / "data" / "torch_random.json")
SEEDS = st.integers(0, 2**63 - 1)


def agree(got, want, kind, dtype=None):
    """Bit for bit, but for normals and doubles, whose last bits depend on the processor even in torch."""
    want = np.asarray(want, got.dtype)
    exact = kind in ("permutation", "narrow_uniform") or (kind == "uniform" and dtype == "float32")
    tolerance = 0 if exact else 8 * np.finfo(got.dtype).eps
    return got.shape == want.shape and np.allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sequence", RECORDED, ids=lambda s: str(s["seed"]))
def test_torch_drew_the_same(sequence):
    generator = TorchGenerator(sequence["seed"])
    for step in sequence["draws"]:
        kind, *options = step["draw"]
        if kind == "permutation":
            assert agree(generator.permutation(*options), step["gives"], kind, None)
        else:
            shape, first, second, *dtype = options
            got = getattr(generator, kind)(tuple(shape), first, second, *dtype)
            assert [str(got.dtype)] == (dtype or ["float32"]) and agree(got, step["gives"], kind, *dtype)


def test_recorded_draws_cover_both_recipes():
    draws = [tuple(map(str, step["draw"])) for s in RECORDED for step in s["draws"]]
    assert {d[0] for d in draws} == {"permutation", "uniform", "narrow_uniform", "normal"} and len(RECORDED) == 6


def test_narrow_numbers_are_the_nearest_and_never_the_upper_bound():
    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -3.01, 1.5 * 2**-130, 0], np.float32)
    assert narrow(x).tolist() == [1, 1, 1 + 2**-6, -3.015625, 1.5 * 2**-130, 0]
    drawn = TorchGenerator(0).narrow_uniform(100_000, -1.0, 1.0)
    assert drawn.max() < 1 == -drawn.min() and (drawn == narrow(drawn)).all() and drawn.dtype == np.float32
    assert (drawn == -1).sum() > 2 * (TorchGenerator(0).uniform(100_000, -1, 1) < -1 + 2**-9).sum() / 1.5


# --- permutations, against their loops --------------------------------------------------------------------------------


def swaps(partner):
    places = list(range(len(partner)))
    for i, j in enumerate(partner):
        places[i], places[j] = places[j], places[i]
    return places


def grown(partner):
    out = []
    for i, j in enumerate(partner):
        out.append(i)
        out[i], out[j] = out[j], out[i]
    return out


@given(st.data(), st.integers(0, 40))
def test_all_swaps_at_once_are_the_loop(data, n):
    ahead = [data.draw(st.integers(i, n - 1)) for i in range(n)]
    behind = [data.draw(st.integers(0, i)) for i in range(n)]
    assert _swapped(np.array(ahead, int)).tolist() == swaps(ahead)
    assert _inside_out(np.array(behind, int)).tolist() == grown(behind)


@pytest.mark.parametrize("n", range(5))
def test_all_swaps_of_few_places(n):
    for partner in itertools.product(*(range(i, n) for i in range(n))):
        assert _swapped(np.array(partner, int)).tolist() == swaps(partner)
    for partner in itertools.product(*(range(i + 1) for i in range(n))):
        assert _inside_out(np.array(partner, int)).tolist() == grown(partner)


@given(SEEDS, st.integers(0, 300))
def test_permutations_hold_every_number_once(seed, n):
    assert sorted(TorchGenerator(seed).permutation(n).tolist()) == list(range(n))


def test_no_negative_permutation():
    with pytest.raises(Bad, match="n must not be negative, found -1"):
        TorchGenerator().permutation(-1)


# --- what holds for every seed ----------------------------------------------------------------------------------------


@given(SEEDS)
def test_the_seed_is_all_there_is(seed):
    draw = lambda s: TorchGenerator(s).uniform(8)
    assert (draw(seed) == draw(seed)).all() and (draw(seed) == draw(seed % 2**32)).all()
    assert (draw(seed) != draw(seed + 1)).any()


def test_draws_go_on_where_the_last_ended():
    parts, whole = TorchGenerator(3), TorchGenerator(3)
    assert np.array_equal(np.concatenate([parts.uniform(5), parts.uniform((2, 3)).ravel()]), whole.uniform(11))
    assert (TorchGenerator().uniform(3) == TorchGenerator(UNSEEDED).uniform(3)).all()


def test_the_distributions():
    generator = TorchGenerator(5)
    u, z = generator.uniform(20000, -1, 3, np.float64), generator.normal(20000, 2.0, 0.5)
    assert stats.kstest((u + 1) / 4, "uniform").pvalue > 1e-3 and u.min() >= -1 and u.max() < 3
    assert stats.kstest((z - 2) / 0.5, "norm").pvalue > 1e-3


@given(SEEDS, st.integers(0, 40), st.sampled_from([np.float32, np.float64]))
def test_shapes_and_dtypes_are_those_asked_for(seed, n, dtype):
    generator = TorchGenerator(seed)
    for draw in (generator.uniform, generator.normal):
        assert draw(n, dtype=dtype).shape == (n,) and draw((n, 2), dtype=dtype).shape == (n, 2)
        assert draw((), dtype=dtype).shape == () and draw((2, n), dtype=dtype).dtype == dtype


def test_other_dtypes():
    with pytest.raises(Bad, match="expected dtype float32 or float64, found float16"):
        TorchGenerator().normal(3, dtype=np.float16)


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.mark.hf
@given(SEEDS, st.lists(st.tuples(st.sampled_from(["permutation", "uniform", "normal"]), st.integers(0, 50), st.sampled_from(["float32", "float64"])), min_size=1, max_size=6))  # fmt: skip
def test_torch_draws_the_same(seed, draws):
    import torch
    from record.record_torch_random import drawn

    theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
    for kind, n, dtype in draws:
        if kind == "permutation":
            got, want = ours.permutation(n), drawn(theirs, kind, n)
        else:
            got, want = getattr(ours, kind)(n, -0.5, 1.5, dtype), drawn(theirs, kind, [n], -0.5, 1.5, dtype)
        assert agree(got, want, kind, dtype)


@pytest.mark.hf
@pytest.mark.slow
def test_torch_permutes_a_large_number_the_same():
    import torch

    n = LARGE
    assert (
        TorchGenerator(1).permutation(n) == torch.randperm(n, generator=torch.Generator().manual_seed(1)).numpy()
    ).all()


@pytest.mark.hf
def test_recording_again_gives_the_same():
    from record.record_torch_random import record

    assert [s["seed"] for s in record()] == [s["seed"] for s in RECORDED]
    for ours, theirs in zip(record(), RECORDED):
        for a, b in zip(ours["draws"], theirs["draws"], strict=True):
            assert a["draw"] == b["draw"] and np.allclose(a["gives"], b["gives"], rtol=1e-6)
