import numpy as np
import pytest
import reference

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.bottleneck.houlsby import Houlsby
from minipeft.model.batch import batch

IDS = np.array([5, 9, 3, 17, 30])


def test_a_bottleneck_after_both_sub_layers():
    adapted = attach(tiny.model(), Houlsby(reduction=4, f="relu"))
    rng = np.random.default_rng(0)
    adapted = adapted.replace({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})
    own = adapted.adapters[0].grouped()

    def after(a, site):
        s = own[site]
        return np.array([x + s["Wu"] @ np.maximum(s["Wd"] @ x + s["bd"], 0) + s["bu"] for x in a])

    want = reference.llama(
        adapted.model, IDS,
        attention=lambda a, n: after(a, f"layers.{n}.attn.out"), ffn=lambda a, u, x, n: after(a, f"layers.{n}.mlp.out"),
    )  # fmt: skip
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction, m", [(16, 1), (4, 6), (5, 4), (1, 24), (100, 1)])
def test_the_width_is_that_of_the_model_over_the_reduction(reduction, m):
    adapter = attach(tiny.model(), Houlsby(reduction=reduction)).adapters[0]
    assert len(adapter.at) == 4
    assert {a.shape for k, a in adapter.arrays.items() if k.endswith("Wd")} == {(m, 24)}


def test_an_encoder_decoder_has_one_after_cross_attention_too():
    found = {
        s.split(".", 1)[1].split(".", 1)[1] for s in attach(tiny.model("t5"), Houlsby()).adapters[0].at if s[0] == "l"
    }
    assert found == {"attn.out", "cross.out", "mlp.out"}


def test_an_unknown_activation_is_refused():
    with pytest.raises(Bad, match=r"f must be one of .*, found 'gelux' \(did you mean gelu"):
        Houlsby(f="gelux")
