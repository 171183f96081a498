"""A mixer between the factors."""

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.conformance.laws import moved
from minipeft.errors import Bad
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.lowrank.moslora import MoSLoRA

SITE = "layers.0.attn.v.weight"  # (12, 24)


@pytest.mark.parametrize("fields", [{}, dict(rslora=True, lora_bias=True)])
def test_without_mixing_it_is_lora(fields):
    model = tiny.model("gpt2")
    batch = tiny.example(model)
    lora, mixed = (moved(attach(model, m(r=3, alpha=5.0, **fields))) for m in (LoRA, MoSLoRA))
    theta = {k: lora.theta.get(k, np.eye(3)) for k in mixed.theta}
    np.testing.assert_allclose(mixed.replace(theta).logits(batch), lora.logits(batch), rtol=1e-12, atol=1e-12)


def test_how_the_mixer_starts():
    M = attach(tiny.model(), MoSLoRA(r=6, mixer="orthogonal"), targets=SITE).adapters[0].arrays[f"{SITE}:M"]
    np.testing.assert_allclose(M @ M.T, np.eye(6), atol=1e-12)
    drawn = [
        attach(tiny.model(), MoSLoRA(r=12), targets=SITE, seed=s).adapters[0].arrays[f"{SITE}:M"] for s in range(9)
    ]
    assert 0.95 * 12**-0.5 < abs(np.array(drawn)).max() <= 12**-0.5
    with pytest.raises(Bad, match="moslora: mixer must be 'uniform' or 'orthogonal', found 'identity'"):
        MoSLoRA(mixer="identity")


def test_the_gradient_of_every_entry_of_the_mixer():
    model = tiny.model()
    batch, adapted = tiny.example(model), moved(attach(model, MoSLoRA(r=2), targets=SITE))
    key = f"default/{SITE}:M"
    grad = adapted.value_and_grad(batch)[1][key]
    for i in np.ndindex(2, 2):
        step = np.zeros((2, 2))
        step[i] = 1e-5
        up, down = (adapted.loss(adapted.theta | {key: adapted.theta[key] + s * step}, batch) for s in (1, -1))
        assert abs((up - down) / 2e-5 - grad[i]) < 1e-8
