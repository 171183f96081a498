import numpy as np
import pytest
import reference

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.methods.bottleneck.parallel_adapter import ParallelAdapter
from minipeft.model.batch import batch

IDS = np.array([5, 9, 3, 17, 30])


@pytest.mark.parametrize("reads", ["input", "residual"])
@pytest.mark.parametrize("learned_scale", [False, True])
def test_it_stands_beside_the_feed_forward(reads, learned_scale):
    method = ParallelAdapter(reduction=4, s=2.5, reads=reads, learned_scale=learned_scale)
    adapted = attach(tiny.model(), method)
    rng = np.random.default_rng(0)
    adapted = adapted.replace({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})
    own = adapted.adapters[0].grouped()

    def ffn(a, u, x, n):
        s = own[f"layers.{n}.mlp.out"]
        g = s["g"][0] if learned_scale else 1.0
        read = u if reads == "input" else x
        return a + [2.5 * g * (s["Wu"] @ np.maximum(s["Wd"] @ r + s["bd"], 0) + s["bu"]) for r in read]

    want = reference.llama(adapted.model, IDS, ffn=ffn)
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


def test_the_readings_agree_in_post_norm_models():
    given = tiny.example(tiny.model("bert"))
    found = []
    for reads in ("input", "residual"):
        adapted = attach(tiny.model("bert"), ParallelAdapter(reads=reads))
        found.append(adapted.replace({k: v + 0.1 for k, v in adapted.theta.items()}).logits(given))
    np.testing.assert_array_equal(*found)
