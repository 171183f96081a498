import numpy as np
import reference

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine import ops
from minipeft.engine.tensor import value_and_grad
from minipeft.methods.bottleneck.ladder_side import LadderSide
from minipeft.model.batch import batch

IDS = np.array([5, 9, 3, 17, 30])


def test_the_side_network_answers():
    """Its equations, token by token, on the hidden states of the backbone."""
    adapted = attach(tiny.model(), LadderSide(r=4, T=0.5))
    rng = np.random.default_rng(0)
    adapted = adapted.replace({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})
    own, arch = adapted.adapters[0].grouped(), adapted.model.arch
    states = []
    reference.llama(
        adapted.model, IDS, embedded=lambda h: states.append(h) or h, layer_out=lambda h, n: states.append(h) or h
    )
    s = states[0] @ own["embed.out"]["D"].T
    for n in range(2):
        a = own[f"layers.{n}.out"]
        g = 1 / (1 + np.exp(-a["alpha"][0] / 0.5))
        s = g * s + (1 - g) * states[n + 1] @ a["D"].T
        u = reference.rms(s, a["n1"], arch.eps)
        q, k, v = ((u @ a[W].T).reshape(len(u), 6, 1) for W in ("Wq", "Wk", "Wv"))  # w = 6 in heads of width 1
        o = np.zeros((len(u), 6))
        for t in range(len(u)):
            for i in range(6):
                o[t, i] = reference.softmax(k[: t + 1, i, 0] * q[t, i, 0]) @ v[: t + 1, i, 0]
        s = s + o @ a["Wo"].T
        s = s + np.maximum(reference.rms(s, a["n2"], arch.eps) @ a["W1"].T, 0) @ a["W2"].T
    last = own["final.out"]
    want = reference.rms(s, last["n"], arch.eps) @ last["U"].T @ adapted.model.params["head.weight"].T
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-11)


def test_no_gradient_enters_the_backbone():
    """The loss, taken as a function of what enters the backbone, has the ladder's gradient alone: none through a layer."""
    adapted = attach(tiny.model(), LadderSide(r=4))
    table = adapted.model.params["embed.tokens.weight"][IDS[None]]
    weights = np.random.default_rng(1).standard_normal(table.shape)

    def side(theta):
        return ops.sum(adapted.forward(batch(inputs_embeds=theta["h"])).hidden * weights)

    def bare(theta):
        return ops.sum(Adapted(adapted.model).forward(batch(inputs_embeds=theta["h"])).hidden * weights)

    assert not np.any(value_and_grad(side)({"h": table})[1]["h"])
    assert np.any(value_and_grad(bare)({"h": table})[1]["h"])
