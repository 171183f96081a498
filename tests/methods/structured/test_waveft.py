import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine.wavelets import FAMILIES
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.waveft import WaveFT


def drawn(method, out, in_, seed=0, moved=0.0):
    return one_part.arrays(method, one_part.site(np.zeros((out, in_))), np.random.default_rng(seed), moved=moved)


def basis(out, in_, **settings):
    """(n, out in): what every coefficient adds, alone."""
    method = WaveFT(n_frequency=out * in_, scaling=1.0, **settings)
    a = drawn(method, out, in_)
    W = np.zeros((out, in_))
    return np.array([weight_of(method, W, a | dict(c=e)).ravel() for e in np.eye(out * in_)]), a


@pytest.mark.parametrize(("out", "in_"), [(6, 8), (8, 6), (4, 4)])
def test_haars_waves_are_orthonormal_and_lie_in_two_by_two_blocks(out, in_):
    waves, a = basis(out, in_)
    np.testing.assert_allclose(waves @ waves.T, np.eye(out * in_), rtol=0, atol=1e-15)
    for wave, i, j in zip(waves.reshape(-1, out, in_), a["rows"], a["cols"], strict=True):
        k, l = i % (out // 2), j % (in_ // 2)
        down, right = (-1 if right else 1 for right in (j >= in_ // 2, i >= out // 2))
        want = np.zeros((out, in_))
        want[2 * k : 2 * k + 2, 2 * l : 2 * l + 2] = 0.5 * np.outer([1, down], [1, right])
        np.testing.assert_allclose(wave, want, rtol=0, atol=2.0**-52)


def test_longer_filters_do_not_reach_every_matrix():
    assert np.linalg.matrix_rank(basis(20, 12)[0]) == 240
    for wavelet, rank in (("db2", 212), ("db4", 180), ("sym8", 202), ("coif2", 178)):
        assert np.linalg.matrix_rank(basis(20, 12, wavelet=wavelet)[0], tol=1e-9) == rank


def test_without_the_transform_the_coefficients_are_the_change():
    method = WaveFT(n_frequency=5, scaling=3.0, idwt=False)
    a = drawn(method, 4, 6, moved=1.0)
    change = weight_of(method, np.zeros((4, 6)), a)
    np.testing.assert_array_equal(change[a["rows"], a["cols"]], 3 * a["c"])
    assert np.count_nonzero(change) == 5


def test_places_are_distinct_and_come_from_the_seed():
    def places(**fields):
        a = drawn(WaveFT(n_frequency=24, **fields), 4, 6)
        return list(zip(a["rows"].tolist(), a["cols"].tolist()))

    assert places() == places(wavelet="db5") and sorted(places()) == [(i, j) for i in range(4) for j in range(6)]
    assert places() != places(seed=1)


def test_starts():
    assert not drawn(WaveFT(n_frequency=9), 4, 6)["c"].any() and WaveFT().identity
    c = drawn(WaveFT(n_frequency=5000, start="normal"), 100, 60)["c"]
    assert 0.0095 < c.std() < 0.0105 and not WaveFT(start="normal").identity


def test_coefficients_are_shared_out_by_size():
    """n_frequency on average, one at least."""
    model = tiny.model("llama")
    for n in (10, 1):
        adapted = attach(model, WaveFT(n_frequency=n, proportional=True), targets="attn.q attn.k mlp.up")
        sizes = {site: model.params[site].size for site in adapted.adapter("default").at}
        assert len(set(sizes.values())) > 1
        for site, size in sizes.items():
            want = max(1, round(size / sum(sizes.values()) * (n * len(sizes))))
            assert adapted.theta[f"default/{site}:c"].size == want


def test_bad_settings_are_named():
    with pytest.raises(Bad, match=r"n_frequency must be at most 4·6 = 24, found 25 at layers.0.attn.q.weight"):
        drawn(WaveFT(n_frequency=25), 4, 6)
    for wavelet in ("db11", "coif4", "haar"):
        with pytest.raises(Bad, match="wavelet must be one of db1, "):
            WaveFT(wavelet=wavelet)


@pytest.mark.hf
@pytest.mark.parametrize("wavelet", FAMILIES)
@pytest.mark.parametrize(("out", "in_"), [(12, 20), (13, 7)])
def test_output_gradients_and_merged_weight_are_those_of_peft(wavelet, out, in_):
    compare(out, in_, dict(wavelet=wavelet, seed=3))


@pytest.mark.hf
def test_the_same_without_the_transform():
    compare(12, 20, dict(idwt=False))
    compare(5, 4, dict(idwt=False, seed=-1))


def compare(out, in_, settings):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    n = out * in_ - 7
    method = WaveFT(n_frequency=n, scaling=2.0, **settings)
    config = peft.WaveFTConfig(
        n_frequency=n, scaling=2.0, wavelet_family=method.wavelet, use_idwt=method.idwt, random_loc_seed=method.seed,
        target_modules=["lin"],
    )  # fmt: skip
    theirs = one_part.Peft(config, W, b, x, c)
    a = drawn(method, out, in_)
    indices = theirs.model.base_model.model.lin.waveft_indices["default"].numpy()
    np.testing.assert_array_equal(np.stack([a["rows"], a["cols"]]), indices)
    theta, rest = dict(c=theirs.params["waveft_spectrum"]), {k: a[k] for k in ("rows", "cols")}
    y, grads = one_part.forward_and_grads(method, theta, rest, x, c, W, b)
    # PEFT's tables of these are rounded
    off = 2e-11 if method.wavelet == "db3" or method.wavelet.startswith("sym") else 2e-14
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=off * abs(theirs.y).max())
    want = theirs.grads["waveft_spectrum"]
    np.testing.assert_allclose(grads["c"], want, rtol=0, atol=off * abs(want).max())
    np.testing.assert_allclose(weight_of(method, W, theta | rest), theirs.merged(), rtol=0, atol=off * 20)


@pytest.mark.hf
def test_shares_are_those_of_peft():
    """Half a coefficient is rounded to the even number."""
    import peft
    import torch

    from minipeft.drawing import Facts

    rng = np.random.default_rng(0)
    for _ in range(60):
        shapes, n = rng.integers(2, 14, (rng.integers(2, 5), 2)).tolist(), int(rng.integers(1, 5))
        net = torch.nn.Sequential(*(torch.nn.Linear(i, o) for o, i in shapes))
        config = peft.WaveFTConfig(n_frequency=n, proportional_parameters=True, target_modules=r"\d")
        sites = [one_part.site(np.zeros(s)) for s in shapes]
        ours = [Facts(WaveFT(n_frequency=n, proportional=True), s, sites=sites)["n"] for s in sites]
        if any(k > o * i for k, (o, i) in zip(ours, shapes, strict=True)):
            continue
        theirs = [p.numel() for k, p in peft.get_peft_model(net, config).named_parameters() if "waveft" in k]
        assert ours == theirs
