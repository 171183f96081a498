import numpy as np
import pytest
import reference

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.bottleneck.pfeiffer import Pfeiffer
from minipeft.methods.routing.adapter_fusion import AdapterFusion
from minipeft.model.batch import batch

IDS = np.array([5, 9, 3, 17, 30])


def experts(model):
    adapted = Adapted(model)
    for k in range(3):
        adapted = attach(adapted, Pfeiffer(reduction=4 + k), name=f"task{k}", seed=k)
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()}).adapters


@pytest.mark.parametrize("query", ["input", "output"])
def test_attention_over_three_trained_adapters(query):
    model = tiny.model()
    trained = experts(model)
    adapted = attach(model, AdapterFusion.from_adapters(trained, query=query))
    rng = np.random.default_rng(1)
    adapted = adapted.replace({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})
    own = adapted.adapters[0].grouped()

    def ffn(a, u, x, n):
        site = f"layers.{n}.mlp.out"
        s, out = own[site], []
        for y, r in zip(a, x, strict=True):
            z = []
            for adapter in trained:
                e = adapter.grouped()[site]
                z.append(e["Wu"] @ np.maximum(e["Wd"] @ (y + r) + e["bd"], 0) + e["bu"])
            ask = s["Q"] @ (y + r if query == "input" else y) + s["q"]
            weights = reference.softmax(np.array([ask @ (s["Kz"] @ zk + s["kz"]) for zk in z]))
            out.append(y + sum(w * (s["Vf"] @ zk) for w, zk in zip(weights, z, strict=True)))
        return np.array(out)

    want = reference.llama(model, IDS, ffn=ffn)
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


def test_only_the_mixture_is_trained_and_vf_is_drawn_to_one():
    model = tiny.model()
    adapted = attach(model, AdapterFusion.from_adapters(experts(model), gamma=0.5))
    assert {k.rpartition(":")[2] for k in adapted.theta} == {"Q", "q", "Kz", "kz", "Vf"}
    given = tiny.example(model)
    adapted = adapted.replace({k: v + 1.0 if k.endswith("Vf") else v for k, v in adapted.theta.items()})
    more = adapted.loss(None, given) - adapted.loss(None, given, penalty=False)
    off = [np.eye(24) - v for k, v in adapted.theta.items() if k.endswith("Vf")]
    np.testing.assert_allclose(more, 0.5 * sum((o * o).sum() for o in off), rtol=1e-12)


def test_adapters_at_other_sites_are_refused():
    model = tiny.model()
    two = attach(attach(model, Pfeiffer(), name="a"), Pfeiffer(), name="b", layers=[1])
    with pytest.raises(Bad, match="adapter 'b' must be Pfeiffer, at the same sites as 'a'"):
        AdapterFusion.from_adapters(two.adapters)
