import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Unfit
from minipeft.methods.bottleneck.invertible import Invertible
from minipeft.model.batch import batch

IDS = np.array([5, 9, 3, 17, 30])
RNG = np.random.default_rng(0)
PAIR = {
    f"{n}{i}": RNG.standard_normal(shape)
    for w, b in ("Fc", "Gk")
    for n, i, shape in ((w, 1, (3, 4)), (b, 1, 3), (w, 2, (4, 3)), (b, 2, 4))
}


@given(arrays(np.float64, (2, 8), elements=st.floats(-10, 10)))
def test_back_undoes_turn_and_turn_undoes_back(x):
    method = Invertible(f="tanh")
    np.testing.assert_allclose(method.back(method.turn(x, **PAIR), **PAIR), x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(method.turn(method.back(x, **PAIR), **PAIR), x, rtol=0, atol=1e-12)


def test_it_turns_after_the_embedding_and_back_before_the_head():
    adapted = attach(tiny.model(), Invertible())
    rng = np.random.default_rng(0)
    adapted = adapted.replace({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})
    s = adapted.adapters[0].grouped()[""]

    def F(x):
        return s["F2"] @ np.maximum(s["F1"] @ x + s["c1"], 0) + s["c2"]

    def G(x):
        return s["G2"] @ np.maximum(s["G1"] @ x + s["k1"], 0) + s["k2"]

    def turn(h):
        y = [x[:12] + F(x[12:]) for x in h]
        return np.array([np.concatenate([y1, x[12:] + G(y1)]) for x, y1 in zip(h, y, strict=True)])

    def back(h):
        x2 = [y[12:] - G(y[:12]) for y in h]
        return np.array([np.concatenate([y[:12] - F(b), b]) for y, b in zip(h, x2, strict=True)])

    want = reference.llama(adapted.model, IDS, embedded=turn, before_head=back)
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-11)


def test_a_model_of_odd_width_is_refused():
    import dataclasses

    model = tiny.model()
    odd = dataclasses.replace(model, arch=dataclasses.replace(model.arch, d=25))
    with pytest.raises(Unfit, match="expected a model of even width, to be halved, found 25"):
        attach(odd, Invertible())
