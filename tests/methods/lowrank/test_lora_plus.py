import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.lowrank.lora_plus import LoRAPlus
from minipeft.train import SGD, fit


def test_b_moves_ratio_times_as_far():
    model = tiny.model()
    batch = tiny.example(model)
    start = attach(model, LoRAPlus(r=2, ratio=7.0, lora_bias=True), targets="attn.q.weight")
    start = start.replace({k: v + 0.1 for k, v in start.theta.items()})
    _, grads = start.value_and_grad(batch)
    after = fit(start, [batch], steps=1, optimiser=SGD(lr=0.01)).adapted.theta
    for key, x in start.theta.items():
        factor = 1.0 if key.endswith(":A") else 7.0
        assert abs(grads[key]).max() > 1e-6
        assert np.allclose(after[key], x - 0.01 * factor * grads[key], rtol=1e-12)


def test_refuses():
    with pytest.raises(Bad, match="lora_plus: ratio must be positive, found 0"):
        LoRAPlus(ratio=0)
