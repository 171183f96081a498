import numpy as np
import pytest
import reference

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.methods.scaling.loreft import LoReFT
from minipeft.model.batch import batch
from minipeft.train import AdamW, fit

IDS = np.array([5, 9, 3, 17, 30, 8])


def moved(adapted):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def edit(h, s, end=""):
    W, b, R = s["W" + end], s["b" + end], s["R" + end]
    return h + R.T @ (W @ h + b - R @ h)


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_and_the_last_tokens_are_edited(tied):
    adapted = moved(attach(tiny.model(), LoReFT(r=3, n_pre=2, n_suf=1, tied=tied)))
    own = adapted.adapters[0].grouped()

    def after(h, n):
        s = own[f"layers.{n}.out"]
        ends = {0: "", 1: "", 5: "" if tied else "_s"}
        return np.array([edit(x, s, ends[t]) if t in ends else x for t, x in enumerate(h)])

    want = reference.llama(adapted.model, IDS, layer_out=after)
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_counted_among_real_tokens(side):
    adapted = moved(attach(tiny.model(), LoReFT(r=2, n_pre=1, n_suf=1)))
    pad = np.zeros(3, int)
    ids, mask = np.concatenate([IDS, pad]), np.concatenate([np.ones(6, int), pad])
    ids, mask = (np.roll(x, 3 if side == "left" else 0) for x in (ids, mask))
    alone = adapted.logits(batch(input_ids=IDS[None]))[0]
    padded = adapted.logits(batch(input_ids=ids[None], attention_mask=mask[None]))[0]
    np.testing.assert_allclose(padded[mask == 1], alone, rtol=0, atol=1e-12)


def test_rows_of_r_stay_orthonormal_in_training():
    adapted = attach(tiny.model(), LoReFT(r=3, n_suf=2))
    before = adapted.adapters[0].arrays["layers.0.out:R"]
    after = fit(adapted, [tiny.example(tiny.model())], steps=5, optimiser=AdamW(lr=0.1)).adapted
    for key, R in after.adapters[0].arrays.items():
        if key.rpartition(":")[2].startswith("R"):
            np.testing.assert_allclose(R @ R.T, np.eye(3), rtol=0, atol=1e-14)
    assert abs(after.adapters[0].arrays["layers.0.out:R"] - before).max() > 0.01
