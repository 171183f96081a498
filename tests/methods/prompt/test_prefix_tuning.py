import numpy as np
import pytest
import reference

from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.prompt.prefix_tuning import PrefixTuning
from minipeft.model.arch import batch
from minipeft.run import attach

IDS = np.array([5, 9, 3, 17, 30])


@pytest.mark.parametrize("hidden", [0, 7])
@pytest.mark.parametrize("positions, start", [("after", 3), ("zero", 0)])
def test_keys_and_values_of_grouped_heads(hidden, positions, start):
    """Row 2l of the flat prefix is layer l's keys, row 2l + 1 its values, each in groups of the key/value heads."""
    adapted = attach(tiny.model(), PrefixTuning(p=3, hidden=hidden, positions=positions))
    s, arch = adapted.adapters[0].grouped()[""], adapted.model.arch
    flat = s["E"] if not hidden else np.tanh(s["E"] @ s["A1"].T + s["c1"]) @ s["A2"].T + s["c2"]
    rows = flat.reshape(3, 2 * arch.layers, arch.kv, arch.dh)

    def keys(k, v, n):
        return [*rows[:, 2 * n], *k], [*rows[:, 2 * n + 1], *v]

    want = reference.llama(adapted.model, IDS, start=start, keys=keys)
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


def test_zero_keys_are_no_identity():
    model = tiny.model()
    adapted = attach(model, PrefixTuning(p=3, start="zero", positions="zero"))
    none = np.zeros((model.arch.kv, model.arch.dh))
    want = reference.llama(model, IDS, keys=lambda k, v, n: ([none] * 3 + k, [none] * 3 + v))
    got = adapted.logits(batch(input_ids=IDS[None]))[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    assert abs(got - reference.llama(model, IDS)).max() > 1e-3


def test_an_unknown_layout_is_refused():
    with pytest.raises(Bad, match="layout must be 'ordered' or 'peft', found 'other'"):
        PrefixTuning(layout="other")
