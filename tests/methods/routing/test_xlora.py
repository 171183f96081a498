import dataclasses
from types import SimpleNamespace

import numpy as np
import one_part
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine import gradcheck, gradients_flow
from minipeft.errors import Bad
from minipeft.merging import merge
from minipeft.method import Base
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.routing.xlora import XLoRA
from minipeft.model.batch import batch
from minipeft.model.generate import generate


def expert(model, seed, **fields):
    """A LoRA adapter that has been somewhere."""
    adapted = attach(model, LoRA(**fields))
    rng = np.random.default_rng(seed)
    return adapted.replace({k: v + 0.3 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()}).adapters[0]


def mixed(model, **fields):
    method = XLoRA.from_adapters(
        [expert(model, 1, r=2), expert(model, 2, r=3, alpha=5.0), expert(model, 3, r=4)], **fields
    )
    adapted = attach(model, method)
    rng = np.random.default_rng(4)
    return adapted.replace({k: v + 0.5 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gates_seen(adapted, data):
    """The gates of one pass."""
    run = adapted.run()
    run.forward(data)
    return run._befores[0][1].state["gates"]


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_gates_come_from_the_hidden_state_of_the_base(layerwise, depth):
    model = tiny.model()
    data = tiny.example(model)
    adapted = mixed(model, layerwise=layerwise, depth=depth, hidden=5, temperature=0.5)
    a = adapted.adapters[0].arrays
    z = Adapted(model).forward(data).hidden
    for i in range(depth):
        z = z @ a[f":V{i}"].T + a[f":v{i}"]
        z = np.maximum(z, 0) if i < depth - 1 else z
    z = z.reshape(3, 7, 4, 3) if layerwise else z
    np.testing.assert_allclose(gates_seen(adapted, data), softmax(z / 0.5), rtol=0, atol=1e-12)


def test_a_pass_value_lets_the_experts_into_the_first_pass():
    model = tiny.model()
    data = tiny.example(model)
    adapted = mixed(model, pass_value=0.25, softmax=False)
    constant = dict(zip(("V0", "v0"), (np.zeros((3, 24)), np.full(3, 0.25))))
    first = adapted.replace({f"default/:{k}": v for k, v in constant.items()}).forward(data).hidden
    a = adapted.adapters[0].arrays
    np.testing.assert_allclose(gates_seen(adapted, data), first @ a[":V0"].T + a[":v0"], rtol=0, atol=1e-12)
    assert abs(first - Adapted(model).forward(data).hidden).max() > 0.01


@pytest.mark.parametrize("table", [False, True])
def test_every_token_mixes_the_experts_by_its_gates(table):
    rng = np.random.default_rng(0)
    W, g = rng.standard_normal((6, 4)), softmax(rng.standard_normal((2, 3, 2)))
    method = XLoRA(experts=(LoRA(r=2, alpha=6.0), LoRA(r=3, alpha=3.0)), gamma=1.5, start="random")
    a = one_part.arrays(method, one_part.site(W), rng)
    x = rng.integers(0, 6, (2, 3)) if table else rng.standard_normal((2, 3, 4))
    got = method.forward(x, Base(W, table=table), SimpleNamespace(state=dict(gates=g), dropout=lambda x, p: x), **a)
    for i in range(2):
        for t in range(3):
            W2 = W + 1.5 * (g[i, t, 0] * 3 * a["B0"] @ a["A0"] + g[i, t, 1] * 1 * a["B1"] @ a["A1"])
            np.testing.assert_allclose(got[i, t], W2[x[i, t]] if table else W2 @ x[i, t], rtol=0, atol=1e-13)


def test_the_largest_gates_stay():
    g = np.array([[[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.0, 0.0, 0.0]]])
    three = (LoRA(), LoRA(), LoRA())
    np.testing.assert_array_equal(XLoRA(experts=three, top_k=2)._pick(g), [[[0.5, 0, 0.3], [0.1, 0, 0.8], [0, 0, 0]]])
    e = np.exp
    expected = [
        [e(0.5) / (e(0.5) + e(0.3)), 0, e(0.3) / (e(0.5) + e(0.3))],
        [e(0.1) / (e(0.1) + e(0.8)), 0, e(0.8) / (e(0.1) + e(0.8))],
    ]
    got = XLoRA(experts=three, top_k=2, top_k_softmax=True)._pick(g)
    np.testing.assert_allclose(got[0, :2], expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(got[0, 2], 0)


def test_the_classifier_alone_is_trained_and_its_first_pass_is_a_constant():
    model = tiny.model()
    data = tiny.example(model)
    adapted = mixed(model, pass_value=0.5)
    assert set(adapted.theta) == {"default/:V0", "default/:v0"}
    _, grads = adapted.value_and_grad(data)
    both = mixed(model, pass_value=0.5, train_experts=True)
    _, more = both.replace(adapted.theta).value_and_grad(data)
    assert {k.rpartition(":")[2] for k in more} == {"V0", "v0", "A0", "B0", "A1", "B1", "A2", "B2"}
    with gradients_flow():  # through the first pass too
        gradcheck(lambda t: both.loss(t, data), both.theta)
        _, flowing = both.value_and_grad(data)
    key = "default/layers.0.attn.q.weight:B0"
    assert abs(flowing[key] - both.value_and_grad(data)[1][key]).max() > 1e-6
    assert grads["default/:V0"].any()


def test_experts_are_copied_with_their_sites_and_an_absent_expert_is_passed_over():
    model = tiny.model()
    first, second = expert(model, 1, r=2), expert(model, 2, r=3, targets="attn.q.weight mlp.up.weight")
    adapter = attach(model, XLoRA.from_adapters([first, second])).adapters[0]
    assert set(adapter.at) == {s for e in (first, second) for s in e.at}
    np.testing.assert_array_equal(
        adapter.arrays["layers.1.attn.q.weight:B1"], second.arrays["layers.1.attn.q.weight:B"]
    )
    assert "layers.1.attn.v.weight:A1" not in adapter.arrays and "layers.1.mlp.up.weight:A0" not in adapter.arrays
    assert np.isfinite(attach(model, XLoRA.from_adapters([first, second])).logits(tiny.example(model))).all()


def test_generation_is_the_same_with_and_without_asking_for_a_cache():
    model = tiny.model()
    data = dataclasses.replace(tiny.example(model, padding="none"), labels=None)
    adapted = mixed(model)
    np.testing.assert_array_equal(generate(adapted, data, 4), generate(adapted, data, 4, use_cache=False))


def test_mistakes_are_named():
    model = tiny.model()
    with pytest.raises(Bad, match=r"top_k must be at most len\(experts\) = 2, found 3"):
        XLoRA(top_k=3)
    with pytest.raises(Bad, match="one stack"):
        attach(tiny.model("t5"), XLoRA())
    with pytest.raises(Bad, match="plain LoRA"):
        XLoRA.from_adapters([attach(model, "dora").adapters[0]])
    with pytest.raises(Bad, match="same method at all sites"):
        XLoRA.from_adapters([attach(model, LoRA(), patterns={"layers.0.*": {"r": 4}}).adapters[0]])
    with pytest.raises(Bad, match="does not merge"):
        merge(mixed(model))
    bert = tiny.model("bert")
    with pytest.raises(Bad, match=r"score.weight must see one vector for each of 7 tokens"):
        attach(bert, XLoRA(start="random"), targets="score.weight").logits(tiny.example(bert))


SETTINGS = {
    "default": ({}, {}),
    "deep": (dict(layerwise_scalings=True, xlora_depth=3, xlora_size=7), dict(layerwise=True, depth=3, hidden=7)),
    "scaled": (dict(softmax_temperature=0.3, global_scaling_weight=1.7), dict(temperature=0.3, gamma=1.7)),
    "top": (dict(top_k_lora=2, enable_softmax=False, enable_softmax_topk=True, layerwise_scalings=True),
            dict(top_k=2, softmax=False, top_k_softmax=True, layerwise=True)),
    "pass": (dict(scaling_pass_value=0.5), dict(pass_value=0.5)),
}  # fmt: skip


@pytest.mark.hf
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", SETTINGS)
def test_logits_and_gradients_are_those_of_peft(which, tmp_path, monkeypatch):
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama import modeling_llama

    from minipeft.checkpoints import load
    from minipeft.interop.peft.reading import load_peft

    def exact_norm(self, x):  # theirs drops to float32, here and below
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def exact_rope(self, x, position_ids):
        angle = position_ids[..., None] * 10000.0 ** (-torch.arange(3, dtype=x.dtype) / 3)
        return tuple(f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", exact_norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", exact_rope)
    config = LlamaConfig(vocab_size=19, hidden_size=12, intermediate_size=20, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1,
                         use_cache=False, tie_word_embeddings=False)  # fmt: skip

    def hf():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).double().eval()

    hf().save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base")
    experts, folders = [], {}
    for k in range(2):
        torch.manual_seed(k)
        lora = peft.LoraConfig(
            r=2 + k, lora_alpha=5, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
        )
        folders[str(k)] = str(tmp_path / str(k))
        peft.get_peft_model(hf(), lora).double().save_pretrained(folders[str(k)])
        experts.append(load_peft(model, folders[str(k)]).adapters[0])
    theirs, ours = SETTINGS[which]
    xconfig = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=12, adapters=folders, **theirs)
    wrapped = peft.get_peft_model(hf(), xconfig).double().eval()
    adapted = attach(model, XLoRA.from_adapters(experts, **ours))
    linears = [m for m in wrapped.base_model.internal_xlora_classifier.layers if isinstance(m, torch.nn.Linear)]
    theta = {}
    for i, m in enumerate(linears):
        theta |= {f"default/:V{i}": m.weight.detach().numpy(), f"default/:v{i}": m.bias.detach().numpy()}
    adapted = adapted.replace(theta)
    ids = np.array([[1, 2, 10, 3], [0, 5, 1, 7]])
    out = wrapped(torch.tensor(ids))
    torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), torch.tensor(ids[:, 1:]).flatten()).backward()
    data = batch(input_ids=ids, labels=ids)
    np.testing.assert_allclose(adapted.logits(data), out.logits.detach().numpy(), rtol=0, atol=1e-12)
    _, grads = adapted.value_and_grad(data)
    for i, m in enumerate(linears):
        np.testing.assert_allclose(grads[f"default/:V{i}"], m.weight.grad.numpy(), rtol=0, atol=1e-13)
        np.testing.assert_allclose(grads[f"default/:v{i}"], m.bias.grad.numpy(), rtol=0, atol=1e-13)
