import os
from pathlib import Path

import numpy as np
import one_part
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.conformance import tiny
from minipeft.errors import Bad, Unfit
from minipeft.interop.peft.reading import load_peft
from minipeft.merging import merge
from minipeft.methods.lowrank.alora import ALoRA
from minipeft.methods.lowrank.lora import LoRA
from minipeft.model.batch import batch
from minipeft.model.generate import generate

RNG = np.random.default_rng(0)
IDS = np.array([[9, 3, 8, 4, 3, 8, 7], [5, 6, 9, 4, 7, 3, 8], [8, 3, 3, 4, 5, 6, 7]])  # (3, 8) from 4, from 5, never
STARTS = (4, 5, 7)


def moved(adapted):
    rng = np.random.default_rng(1)
    return adapted.replace({k: v + 0.5 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def same_arrays(adapted, method, **more):
    """Another method with the arrays of an adapter."""
    return attach(adapted.model, method, **more).replace(adapted.theta)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_before_the_invocation_the_model_is_the_base_whose_keys_and_values_can_be_kept(family):
    model = tiny.model(family)
    adapted = moved(attach(model, ALoRA(r=2, invocation=(3, 8)), targets="all-linear"))
    ours, base = adapted.logits(batch(input_ids=IDS)), Adapted(model).logits(batch(input_ids=IDS))
    for row, start in enumerate(STARTS):
        assert (ours[row, :start] == base[row, :start]).all()
        assert (abs(ours[row, start:] - base[row, start:]).max(axis=-1) > 1e-3).all()


def test_invoked_at_once_it_is_lora():
    model = tiny.model()
    adapted = moved(attach(model, ALoRA(r=2, alpha=3.0, invocation=(9,)), targets="all-linear"))
    given = batch(input_ids=IDS[:1])
    lora = same_arrays(adapted, LoRA(r=2, alpha=3.0), targets="all-linear")
    np.testing.assert_allclose(adapted.logits(given), lora.logits(given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_generation_with_kept_keys_and_values_is_that_from_scratch(family, padded):
    """Also where the invocation is made anew, by a row that had it and by one that had not."""
    model, again = tiny.model(family), 0
    mask = np.ones_like(IDS)
    mask[:2, :3] = not padded
    given = batch(input_ids=IDS * mask, attention_mask=mask)
    for token in {*IDS[0].tolist(), *generate(Adapted(model), given, 6).ravel().tolist()}:
        adapted = moved(attach(model, ALoRA(r=2, invocation=(token,)), targets="all-linear"))
        kept = generate(adapted, given, 6)
        assert (kept == generate(adapted, given, 6, use_cache=False)).all()
        again += (kept[:, :-1] == token).sum()
    assert again


def test_what_is_generated_is_what_every_prefix_predicts():
    model = tiny.model()
    adapted = moved(attach(model, ALoRA(r=2, invocation=(3, 8)), targets="all-linear"))
    made = generate(adapted, batch(input_ids=IDS), 5)
    whole = np.concatenate([IDS, made], axis=1)  # no invocation is made: the passes below would count it
    ends = [tuple(row[i : i + 2]) for row in whole for i in range(6, 11)]
    assert (3, 8) not in ends
    for n in range(5):
        assert (adapted.logits(batch(input_ids=whole[:, : 7 + n]))[:, -1].argmax(-1) == made[:, n]).all()


def test_virtual_tokens_before_the_text_move_nothing():
    model = tiny.model()
    adapted = moved(attach(model, ALoRA(r=2, invocation=(3, 8)), targets="all-linear"))
    virtual = attach(adapted, "prompt_tuning", name="virtual")
    base = attach(model, "prompt_tuning", name="virtual")
    base = base.replace({k: v for k, v in virtual.theta.items() if k.startswith("virtual/")})
    ours, plain = virtual.logits(batch(input_ids=IDS)), base.logits(batch(input_ids=IDS))
    n = ours.shape[1] - IDS.shape[1]
    for row, start in enumerate(STARTS):
        same = (ours[row] == plain[row]).all(axis=-1)
        assert same[: n + start].all() and not same[n + start :].any()
    assert (
        generate(virtual, batch(input_ids=IDS), 5) == generate(virtual, batch(input_ids=IDS), 5, use_cache=False)
    ).all()


def test_a_text_shorter_than_the_invocation_is_the_bases():
    model = tiny.model()
    adapted = moved(attach(model, ALoRA(r=2, invocation=(3, 8, 4)), targets="all-linear"))
    short = batch(input_ids=IDS[:, 1:3])
    assert (adapted.logits(short) == Adapted(model).logits(short)).all()


def test_refuses():
    model = tiny.model()
    adapted = attach(model, ALoRA(invocation=(3,)))
    with pytest.raises(Bad, match=r"does not merge|no weight"):
        merge(adapted)
    with pytest.raises(Bad, match="needs input_ids; the batch has none"):
        adapted.logits(batch(inputs_embeds=np.zeros((1, 3, model.arch.d))))
    with pytest.raises(Bad, match="invocation must have at least one token id, found none"):
        attach(model, ALoRA())
    with pytest.raises(Bad, match=rf"invocation must lie in 0 … {model.arch.vocab - 1}, found 5000, at"):
        attach(model, ALoRA(invocation=(2, 5000)))
    with pytest.raises(Bad, match="invocation must be token ids"):
        ALoRA(invocation=(-1,))
    for family in ("t5", "vit"):
        with pytest.raises(Unfit, match="one stack, which reads tokens"):
            attach(tiny.model(family), ALoRA(invocation=(3,)))


@pytest.mark.hf
@pytest.mark.parametrize("shape", [(5, 9), (12, 4)])
@pytest.mark.parametrize("lora_bias", [False, True])
@pytest.mark.parametrize("invocation", [(3, 8), (3,), (4,)])
def test_output_and_gradients_are_those_of_peft(shape, lora_bias, invocation):
    import peft
    import torch
    from peft.tuners.lora.variants import calculate_alora_offsets

    out, in_ = shape
    W, b, x, c = (RNG.standard_normal(s) for s in (shape, (out,), (3, 7, in_), (3, 7, out)))
    config = peft.LoraConfig(
        r=6, lora_alpha=5, lora_bias=lora_bias, alora_invocation_tokens=[*invocation], target_modules=["lin"]
    )
    offsets = calculate_alora_offsets({"default": config}, "default", torch.tensor(IDS))
    theirs = one_part.Peft(config, W, b, x, c, alora_offsets=offsets)
    method = ALoRA(r=6, alpha=5.0, lora_bias=lora_bias, invocation=invocation)
    keys = dict(A="lora_A.weight", B="lora_B.weight", c="lora_B.bias")
    theta = {k: theirs.params[v] for k, v in keys.items() if v in theirs.params}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b, input_ids=IDS)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    for k in theta:
        expected = theirs.grads[keys[k]]
        np.testing.assert_allclose(grads[k], expected, rtol=0, atol=1e-13 * abs(expected).max())


@pytest.mark.hf
@pytest.mark.parametrize("case", ["alora", "alora-two", "alora-long"])
def test_what_is_generated_is_what_peft_generates_with_a_cache(case):
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    import peft
    import torch
    import transformers as tf

    folder = Path(__file__).parents[2] / "data" / "peft" / "llama"
    ids = np.array([[34, 13, 8, 31, 40, 36, 27], [15, 36, 27, 34, 40, 41, 11], [8, 34, 42, 8, 15, 19, 30]])
    ours = generate(load_peft(load(folder / "base", np.float64), folder / case / "adapter"), batch(input_ids=ids), 8)
    base = tf.LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model, given = peft.PeftModel.from_pretrained(base, folder / case / "adapter").double().eval(), torch.tensor(ids)
    with torch.no_grad():
        options = dict(max_new_tokens=8, do_sample=False, use_cache=True)
        theirs = model.generate(input_ids=given, attention_mask=torch.ones_like(given), **options)
    assert (theirs[:, 7:].numpy() == ours).all()
