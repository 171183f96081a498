import numpy as np
import one_part
import pytest

from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.lowrank.qa_lora import QALoRA

RNG = np.random.default_rng(0)


def drawn(method, out, in_, moved=0.0):
    return one_part.arrays(method, one_part.site(np.zeros((out, in_))), np.random.default_rng(1), moved=moved)


def test_it_merges_into_the_zero_points_of_a_quantised_weight():
    """W = step (q − zero), steps and zeros for each row and group of 3 inputs: the same codes q and steps with other zeros."""
    q, step, zero = RNG.integers(0, 16, (5, 12)), RNG.uniform(0.1, 1, (5, 4)), RNG.uniform(0, 15, (5, 4))

    def weight(zero):
        return step.repeat(3, axis=1) * (q - zero.repeat(3, axis=1))

    method = QALoRA(r=2, alpha=3.0, group=3)
    a = drawn(method, 5, 12, moved=0.5)
    merged = weight_of(method, weight(zero), a)
    np.testing.assert_allclose(merged, weight(zero - 1.5 * (a["B"] @ a["A"]) / step), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("g", "times"), [(2, 3), (6, 1 / 3), (12, 1 / 12), (1, 12)])
def test_the_readings_differ_by_a_factor(g, times):
    """in/g²: 12 inputs."""
    a = drawn(QALoRA(r=2, group=g), 5, 12, moved=0.5)
    paper, peft = (weight_of(QALoRA(r=2, group=g, pool=pool), np.zeros((5, 12)), a) for pool in ("sum", "peft"))
    np.testing.assert_allclose(peft, times * paper, rtol=1e-14)


def test_groups_of_one_are_lora():
    a = drawn(QALoRA(r=2, alpha=3.0, group=1), 5, 12, moved=0.5)
    change = weight_of(QALoRA(r=2, alpha=3.0, group=1), np.zeros((5, 12)), a)
    np.testing.assert_allclose(change, 1.5 * a["B"] @ a["A"], rtol=1e-13)


def test_shapes_and_errors():
    a = drawn(QALoRA(r=40, group=4), 5, 12)
    assert {k: v.shape for k, v in a.items()} == {"A": (40, 3), "B": (5, 40)}  # a rank beyond both sides
    assert not a["B"].any() and 0.9 < abs(a["A"]).max() * 3**0.5 <= 1
    with pytest.raises(Bad, match="group must divide the width 12, found 5, at"):
        drawn(QALoRA(group=5), 5, 12)
    with pytest.raises(Bad, match="lora_bias"):
        QALoRA(lora_bias=True)


@pytest.mark.hf
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("g", [1, 3, 12])
@pytest.mark.parametrize("out", [5, 20])
def test_output_and_gradients_are_those_of_peft(rslora, g, out, monkeypatch):
    """Of its layer for GPTQ's linears, over a plain one."""
    import peft
    from peft.tuners.lora import model
    from peft.tuners.lora.gptq import GPTQLoraLinear

    def over_any(target, adapter_name, config, **kwargs):
        return GPTQLoraLinear(target, adapter_name, config=config, **kwargs)

    monkeypatch.setattr(model, "dispatch_gptq", over_any)
    W, b, x, c = (RNG.standard_normal(s) for s in ((out, 12), (out,), (2, 3, 12), (2, 3, out)))
    config = peft.LoraConfig(
        r=4, lora_alpha=5, use_rslora=rslora, use_qalora=True, qalora_group_size=g, target_modules=["lin"]
    )
    theirs = one_part.Peft(config, W, b, x, c)
    method = QALoRA(r=4, alpha=5.0, rslora=rslora, group=g, pool="peft")
    theta = {k: theirs.params[f"lora_{k}.weight"] for k in "AB"}
    assert theta["A"].shape == (4, 12 // g)
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    for k in "AB":
        expected = theirs.grads[f"lora_{k}.weight"]
        np.testing.assert_allclose(grads[k], expected, rtol=0, atol=1e-13 * abs(expected).max())
