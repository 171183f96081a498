import numpy as np
import pytest
import reference

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad, Unfit
from minipeft.methods.prompt.llama_adapter import LLaMAAdapter
from minipeft.model.batch import batch

IDS = np.array([5, 9, 3, 17, 30])


def moved(adapted):
    return adapted.replace({k: v + (0.7 if k.endswith(":g") else 0) for k, v in adapted.theta.items()})


def branch(model, own, q, n):
    """The gated second attention of every token and head, joined."""
    s, arch, p = own[f"layers.{n}.attn.heads"], model.arch, model.params
    k, v = ((s["A"] @ p[f"layers.{n}.attn.{x}.weight"].T).reshape(-1, arch.kv, arch.dh) for x in "kv")
    out = []
    for row in q:
        o = []
        for i, head in enumerate(row):
            group = i // (arch.heads // arch.kv)
            o.append(reference.softmax(k[:, group] @ head / np.sqrt(arch.dh)) @ v[:, group])
        out.append(s["g"][0] * np.concatenate(o))
    return np.array(out)


@pytest.mark.parametrize("adds", ["heads", "projected"])
def test_a_second_softmax_over_the_prompt(adds):
    """Without a bias at the output projection the two readings are the same."""
    model = tiny.model()
    targets = "attn.heads" if adds == "heads" else "attn.heads attn.o.out"
    adapted = moved(attach(model, LLaMAAdapter(K=4, adds=adds), targets=targets))
    own = adapted.adapters[0].grouped()
    want = reference.llama(model, IDS, heads=lambda o, q, n: o + branch(model, own, q, n))
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


def test_only_the_layers_asked_for():
    model = tiny.model()
    adapted = moved(attach(model, LLaMAAdapter(K=4), layers=[1]))
    own = adapted.adapters[0].grouped()
    want = reference.llama(model, IDS, heads=lambda o, q, n: o + branch(model, own, q, n) if n == 1 else o)
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


def test_the_bare_branch_skips_the_projection():
    model = tiny.model()
    adapted = moved(attach(model, LLaMAAdapter(K=4, adds="bare"), targets="attn.heads attn.o.out"))
    own = adapted.adapters[0].grouped()
    queries = {}

    def heads(o, q, n):
        queries[n] = q
        return o

    want = reference.llama(model, IDS, heads=heads, attention=lambda a, n: a + branch(model, own, queries[n], n))
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


def test_other_sites_are_refused():
    with pytest.raises(Unfit, match=r"expected attn\.heads sites, found layers\.0\.mlp\.out"):
        attach(tiny.model(), LLaMAAdapter(), targets="mlp.out")
    with pytest.raises(Bad, match="K must be at least 1, found 0"):
        LLaMAAdapter(K=0)
