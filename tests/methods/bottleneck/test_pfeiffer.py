import numpy as np
import reference

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.methods.bottleneck.pfeiffer import Pfeiffer
from minipeft.model.batch import batch

IDS = np.array([5, 9, 3, 17, 30])


def moved(adapted):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def test_it_reads_the_sum_and_adds_to_the_output():
    adapted = moved(attach(tiny.model(), Pfeiffer(reduction=4)))
    own = adapted.adapters[0].grouped()

    def ffn(a, u, x, n):
        s = own[f"layers.{n}.mlp.out"]
        return np.array(
            [y + s["Wu"] @ np.maximum(s["Wd"] @ (y + r) + s["bd"], 0) + s["bu"] for y, r in zip(a, x, strict=True)]
        )

    want = reference.llama(adapted.model, IDS, ffn=ffn)
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


def test_a_post_norm_layer_uses_its_norm_twice():
    """Of BERT's last layer, whose input and feed-forward are taken from a run that stops before it."""
    model = tiny.model("bert")
    adapted = moved(attach(model, Pfeiffer(reduction=4), targets="layers.1.mlp.out"))
    given = batch(input_ids=IDS[None])
    own, p = adapted.adapters[0].grouped()["layers.1.mlp.out"], model.params
    seen = {}

    class Spy(Pfeiffer, register=False):
        def apply(self, a, here, **arrays):
            seen.update(a=a[0], x=here.x[0])
            return super().apply(a, here, **arrays)

    spied = attach(model, Spy(reduction=4), targets="layers.1.mlp.out")
    spied.replace(adapted.theta).logits(given)
    w, b = p["layers.1.mlp.norm.weight"], p["layers.1.mlp.norm.bias"]

    def norm(x):
        return (x - x.mean()) / np.sqrt(x.var() + model.arch.eps) * w + b

    want = []
    for a, x in zip(seen["a"], seen["x"], strict=True):
        g = norm(x + a)
        want.append(norm(x + a + own["Wu"] @ np.maximum(own["Wd"] @ g + own["bd"], 0) + own["bu"]))
    hidden = adapted.forward(given).hidden[0]
    np.testing.assert_allclose(hidden, want, rtol=0, atol=1e-12)
