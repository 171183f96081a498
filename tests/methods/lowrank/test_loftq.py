import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load, save_model
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.methods.lowrank.loftq import LoftQ
from minipeft.methods.lowrank.qlora import QLoRA
from minipeft.model.batch import batch
from minipeft.quantize import quantize

SITE = "layers.1.mlp.down.weight"  # (24, 40)
TESTS = Path(__file__).parents[2]


def begun(method, dtype=np.float64, site=SITE):
    """W, what it is held as, and the change that is there before training."""
    model = tiny.model(dtype=dtype)
    adapted = attach(model, method, targets=site)
    own = adapted.adapters[0].grouped()[site]
    return model.params[site], adapted.model.params[site].dequantize(), method.scale * own["B"] @ own["A"]


@pytest.mark.parametrize("rslora", [False, True])
def test_the_change_is_the_best_of_its_rank_for_what_was_lost(rslora):
    W, Q, change = begun(LoftQ(r=3, alpha=5.0, rslora=rslora))
    assert (quantize(W).dequantize() == Q).all() and (Q != W).any()
    sigma = np.linalg.svd(W - Q, compute_uv=False)
    assert np.allclose(np.linalg.svd(change, compute_uv=False)[:4], [*sigma[:3], 0], atol=1e-14)
    assert np.allclose(np.linalg.svd(W - Q - change, compute_uv=False)[:-3], sigma[3:], atol=1e-14)


def test_every_round_quantises_what_the_factors_leave():
    W, Q, change = begun(LoftQ(r=3, alpha=5.0))
    for rounds in (2, 3, 5):
        W2, Q2, change2 = begun(LoftQ(r=3, alpha=5.0, rounds=rounds))
        if rounds == 2:
            assert (quantize(W - change).dequantize() == Q2).all() and (Q2 != Q).any()
        assert np.linalg.norm(W2 - Q2 - change2) < np.linalg.norm(W - Q - change) < np.linalg.norm(W - Q)


def test_without_the_scale_nothing_is_made_up_for_at_two():
    """Of a change that is twice too large as much is left as there was: ‖D − 2 D_r‖ = ‖D‖."""
    for alpha, s in ((3.0, 1), (6.0, 2)):
        W, Q, change = begun(LoftQ(r=3, alpha=alpha, reading="peft"))
        _, _, right = begun(LoftQ(r=3, alpha=alpha))
        assert np.allclose(change, s * right, atol=1e-14)
    assert np.isclose(np.linalg.norm(W - Q - change), np.linalg.norm(W - Q), rtol=1e-12)


def test_float32_has_the_same_codes_and_the_adapter_its_type():
    _, Q, change = begun(LoftQ(r=3, rounds=1), np.float32)
    _, Q2, change2 = begun(LoftQ(r=3, rounds=1), np.float64)
    assert (
        Q.dtype == change.dtype == np.float32
        and np.allclose(Q, Q2, atol=1e-7)
        and np.allclose(change, change2, atol=1e-6)
    )


def test_the_model_starts_nearer_to_the_base_than_a_quantised_one():
    model = tiny.model()
    given = tiny.example(model)
    want = Adapted(model).logits(given)
    off = [
        np.linalg.norm(attach(model, m, targets="all-linear").logits(given) - want)
        for m in (LoftQ(r=8, rounds=5), LoftQ(r=8), QLoRA(r=8, double_quant=False))
    ]
    assert off == sorted(off) and off[0] < 0.8 * off[2]


def test_refuses():
    held = attach(tiny.model(), QLoRA(r=2), targets=SITE).model
    with pytest.raises(Bad, match=f"loftq: {SITE}: expected a weight of its own in full precision"):
        attach(held, LoftQ(r=2), targets=SITE)
    with pytest.raises(Bad, match=r"loftq: head.weight: expected a weight of its own .* found one that is tied"):
        attach(tiny.model("gpt2"), LoftQ(r=2), targets="head.weight")
    with pytest.raises(Bad, match=f"loftq: r must be at most 24, found 25 at {SITE}"):
        attach(tiny.model(), LoftQ(r=25), targets=SITE)
    for fields, line in [
        (dict(rounds=0), "loftq: rounds must be at least 1"),
        (dict(alpha=0.0), "loftq: alpha must be positive"),
        (dict(start="gaussian"), "loftq: lora_bias and start go with factors that are drawn"),
        (dict(reading="bnb"), "loftq: reading must be 'paper' or 'peft', found 'bnb'"),
    ]:
        with pytest.raises(Bad, match=line):
            LoftQ(**fields)


def recorded():
    """The recorder's file, in which PEFT quantises on the processor."""
    spec = spec_from_file_location("recorded_loftq", TESTS / "record" / "peft" / "loftq.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.hf
@pytest.mark.parametrize("code", ["nf4", "int8"])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_peft_finds_the_same(shape, rounds, code):
    """On the processor, where PEFT asks for an accelerator. Its own values are wrong for some widths (`minipeft.quantize`)."""
    import torch

    from minipeft.drawing import Facts
    from minipeft.method import Site
    from minipeft.methods.lowrank.loftq import alternated

    loftq_init = recorded().loftq_init
    W = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    method = LoftQ(r=3, alpha=6.0, rounds=rounds, reading="peft", code=code)
    Q, own = alternated(method, Facts(method, Site("q.weight", shape, "linear", None, W)))
    Q2, A, B = loftq_init(torch.tensor(W), num_bits=dict(nf4=4, int8=8)[code], reduced_rank=3, num_iter=rounds)
    assert np.allclose(Q.dequantize(), Q2.numpy(), rtol=0, atol=1e-6)
    assert np.allclose(own["B"] @ own["A"], (B @ A).numpy(), rtol=0, atol=2e-5)
    assert np.allclose(abs(own["B"]), abs(B.numpy()), rtol=0, atol=2e-4)


@pytest.mark.hf
def test_peft_has_no_two_bits():
    import torch

    with pytest.raises(ValueError, match="Only nf4 and int8"):
        recorded().loftq_init(torch.ones(4, 4), num_bits=2, reduced_rank=1)


@pytest.mark.parametrize("code", ["nf4", "int8"])
def test_a_file_tells_how_the_base_is_quantised(code, tmp_path):
    model = load(TESTS / "data" / "peft" / "llama" / "base", np.float64)
    adapted = attach(model, LoftQ(r=2, rounds=2, reading="peft", code=code), targets="q_proj")
    save_peft(adapted, tmp_path)
    again = load_peft(model, tmp_path)
    assert again.model.digest() == adapted.model.digest() != model.digest()
    assert again.adapters[0].method == adapted.adapters[0].method


@pytest.mark.hf
def test_peft_computes_the_same_on_the_base_that_was_saved(tmp_path):
    """The base as it is held, written beside the adapter."""
    import torch
    import transformers
    from peft import PeftModel

    sys.path.insert(0, str(TESTS / "record"))
    hf = import_module("float64")
    sys.path.remove(str(TESTS / "record"))
    model = load(TESTS / "data" / "peft" / "llama" / "base", np.float64)
    adapted = attach(model, LoftQ(r=3, alpha=5.0, rounds=3), targets="q_proj down_proj")
    rng = np.random.default_rng(0)
    noisy = {k: v + 0.2 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()}
    adapted = adapted.replace({k: v.astype(np.float32).astype(np.float64) for k, v in noisy.items()})
    save_model(adapted.model, tmp_path / "base")
    save_peft(adapted, tmp_path / "adapter")
    ids = np.array([[5, 9, 3, 17, 30], [8, 30, 4, 11, 2]])
    modules = [import_module("peft.tuners.lora.layer")]
    torch.set_default_dtype(torch.float64)
    try:
        with hf.as_float64(*modules), torch.no_grad():
            base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
            theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").double().eval()
            want = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    got = adapted.logits(batch(input_ids=ids))
    assert np.allclose(got, want, rtol=0, atol=1e-11 * abs(want).max())
    assert abs(Adapted(model, adapted.adapters).logits(batch(input_ids=ids)) - want).max() > 1e-3  # on the other base
