import os
import sys
from pathlib import Path

import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.merging import merge
from minipeft.methods.lowrank.lora import LoRA
from minipeft.methods.routing.arrow import Arrow, direction, power
from minipeft.model.batch import batch

RNG = np.random.default_rng(0)
TESTS = Path(__file__).parents[2]
SITES = "attn.q.weight mlp.down.weight"


def trained(model, seed, targets=SITES, **settings):
    """A LoRA adapter as if trained."""
    made = attach(model, LoRA(**dict(r=2, alpha=3.0) | settings), targets=targets)
    rng = np.random.default_rng(seed)
    made = made.replace({k: v + 0.4 * rng.standard_normal(v.shape).astype(v.dtype) for k, v in made.theta.items()})
    return made.adapters[0]


@pytest.mark.parametrize(("r", "out", "in_"), [(1, 5, 7), (3, 5, 7), (9, 7, 5), (9, 5, 12)])
def test_a_direction_is_the_dominant_right_singular_vector(r, out, in_):
    """Also with ranks beyond both sides."""
    rng = np.random.default_rng([r, out, in_])
    A, B = rng.standard_normal((r, in_)), rng.standard_normal((out, r))
    v = np.linalg.svd(B @ A)[2][0]
    assert abs(abs(direction(A, B) @ v) - 1) < 1e-13
    S = np.linalg.svd(B @ A, compute_uv=False)
    ratio = (S[1] / S[0]) ** 30 if r > 1 else 0.0  # what 15 steps leave, but for the start
    assert 1 - abs(power(A, B, 5) @ v) <= (100 * ratio) ** 2 + 1e-6


def given(**settings):
    method = Arrow(**settings)
    W, b, x = RNG.standard_normal((5, 7)), RNG.standard_normal(5), RNG.standard_normal((2, 3, 7))
    return method, one_part.arrays(method, one_part.site(W), np.random.default_rng(1), moved=0.4), W, b, x


EXPERTS = (LoRA(r=2, alpha=3.0), LoRA(r=2, alpha=5.0), LoRA(r=3))


def test_a_token_along_an_experts_direction_is_that_experts():
    """Its norm sharpens the gates: far along one direction the others do not count."""
    method, a, W, b, _ = given(experts=EXPERTS, start="random", train_experts=True)
    for k, e in enumerate(EXPERTS):
        x = 1e4 * a["P"][k]
        own = W + e.scale * a[f"B{k}"] @ a[f"A{k}"]
        np.testing.assert_allclose(
            one_part.output(method, a, x[None, None], W, b)[0, 0], own @ x + b, rtol=1e-12, atol=1e-8
        )
        np.testing.assert_allclose(
            one_part.output(method, a, -x[None, None], W, b)[0, 0], -own @ x + b, rtol=1e-12, atol=1e-8
        )


def test_an_expert_that_is_not_asked_adds_nothing_and_order_does_not_matter():
    method, a, W, b, x = given(experts=EXPERTS, start="random", top_k=2, train_experts=True)
    y, gates = one_part.output(method, a, x, W, b), np.asarray(method._gates(x, a["P"]))
    assert ((gates > 0).sum(axis=-1) == 2).all() and np.allclose(gates.sum(axis=-1), 1)
    turned = Arrow(experts=EXPERTS[::-1], top_k=2, train_experts=True)
    other = {f"{n}{2 - k}": a[f"{n}{k}"] for n in "AB" for k in range(3)} | {"P": a["P"][::-1]}
    np.testing.assert_allclose(one_part.output(turned, other, x, W, b), y, rtol=1e-13)


def test_dropout_acts_on_what_is_added():
    method, a, W, b, x = given(experts=EXPERTS, start="random", dropout=0.5)
    base, full = x @ W.T + b, one_part.output(method, a, x, W, b)
    got = one_part.output(method, a, x, W, b, train=True, rng=np.random.default_rng(3))
    keep = np.random.default_rng(3).random(base.shape, dtype=np.float32) >= 0.5
    np.testing.assert_allclose(got, base + np.where(keep, 2 * (full - base), 0), atol=1e-12)


def test_general_knowledge_is_taken_out_once_before_directions_are_sought():
    model = tiny.model()
    library, general = [trained(model, k) for k in (1, 2, 3)], [trained(model, k) for k in (7, 8)]
    made = attach(model, Arrow.from_adapters(library, general, top_k=2)).adapters[0]
    for site, own in made.grouped().items():
        common = {n: sum(g.grouped()[site][n] for g in general) / 2 for n in "AB"}
        for k, adapter in enumerate(library):
            for n in "AB":
                np.testing.assert_allclose(own[f"{n}{k}"], adapter.grouped()[site][n] - common[n], rtol=1e-14)
            v = np.linalg.svd(own[f"B{k}"] @ own[f"A{k}"])[2][0]
            assert abs(abs(own["P"][k] @ v) - 1) < 1e-12
    assert set(library[0].grouped()) == set(made.grouped())


def test_what_does_not_fit_is_refused():
    model = tiny.model()
    library = [trained(model, k) for k in (1, 2, 3)]
    with pytest.raises(Bad, match="top_k must be at most"):
        Arrow(top_k=4)
    with pytest.raises(Bad, match="top_k must be at most"):
        Arrow.from_adapters(library[:2])
    with pytest.raises(Bad, match="at the same sites"):
        Arrow.from_adapters([*library, trained(model, 4, targets="attn.q.weight")])
    with pytest.raises(Bad, match="general adapters must have the rank"):
        Arrow.from_adapters(library, [trained(model, 4, r=3)])
    with pytest.raises(Bad, match="without lora_bias"):
        Arrow(experts=(LoRA(lora_bias=True),) * 3)
    tables = [trained(model, k, targets="embed.tokens.weight") for k in (1, 2, 3)]
    with pytest.raises(Bad, match="expected linears"):
        attach(model, Arrow.from_adapters(tables))
    with pytest.raises(Bad, match="merge"):
        merge(attach(model, Arrow.from_adapters(library)))


def test_what_peft_would_have_is_written_and_read_again(tmp_path):
    model = tiny.model()
    library = [trained(model, k) for k in (1, 2, 3)]
    made = attach(model, Arrow.from_adapters(library, v="power", seed=4, top_k=2, temperature=0.5))
    save_peft(made, tmp_path)
    again = load_peft(model, tmp_path)
    assert again.adapters[0].method == made.adapters[0].method
    assert all((again.adapters[0].arrays[k] == v).all() for k, v in made.adapters[0].arrays.items())
    (tmp_path / "task_1" / "adapter_config.json").unlink()
    with pytest.raises(Bad, match="expert 'task_1' of the Arrow router is neither there nor beside it"):
        load_peft(model, tmp_path)
    uneven = attach(model, Arrow.from_adapters([trained(model, k, r=k) for k in (1, 2, 3)]))
    with pytest.raises(Bad, match="its experts have one rank there, found"):
        save_peft(uneven, tmp_path / "other")
    experts = [trained(model, k) for k in (1, 2, 3)]
    beside = attach(model, Arrow.from_adapters(experts), train_whole=["norm"])
    with pytest.raises(Bad, match="arrow cannot be written for PEFT with full beside it"):
        save_peft(beside, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["../task_0", "..", "/tmp", "a/b"])
def test_experts_elsewhere_are_not_read(name, tmp_path):
    model = tiny.model()
    save_peft(attach(model, Arrow.from_adapters([trained(model, k) for k in (1, 2, 3)])), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"task_0"', f'"{name}"'))
    with pytest.raises(Bad, match="expected the name of a folder"):
        load_peft(model, tmp_path)


@pytest.mark.hf
@pytest.mark.parametrize("general", [0, 2])
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_logits_are_those_of_peft_by_its_files_and_by_ours(general, base, tmp_path):
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(TESTS / "record"))
    try:
        import float64
    finally:
        sys.path.remove(str(TESTS / "record"))
    import peft
    import torch
    import transformers as tf
    from peft.tuners.lora import arrow, layer
    from peft.tuners.lora.arrow import create_arrow_model

    folder = TESTS / "data" / "peft" / base / "base"
    targets = dict(llama=["q_proj", "down_proj"], gpt2=["c_fc"])[base]
    model = load(folder, np.float64)
    ids = np.array([[5, 9, 3, 17, 30], [8, 30, 4, 11, 2]])

    def theirs():
        cls = tf.LlamaForCausalLM if base == "llama" else tf.GPT2LMHeadModel
        return cls.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")

    paths = {}
    for k in range(3 + general):
        torch.manual_seed(k)
        config = peft.LoraConfig(r=2, lora_alpha=3 + k, target_modules=targets, init_lora_weights=False)
        name = f"task_{k}" if k < 3 else f"gks_{k - 3}"
        paths[name] = str(tmp_path / "trained" / name)
        peft.get_peft_model(theirs(), config).save_pretrained(paths[name])

    def logits(paths, general, use_gks, save=None):
        config = peft.ArrowConfig(top_k=2, router_temperature=0.7, rng_seed=5, use_gks=use_gks)
        with float64.as_float64(arrow, layer):
            torch.set_default_dtype(torch.float64)
            try:
                made = (
                    create_arrow_model(theirs(), paths, config, general, autocast_adapter_dtype=False).double().eval()
                )
                if save:
                    made.save_pretrained(save)
                with torch.no_grad():
                    return made(input_ids=torch.tensor(ids)).logits.numpy()
            finally:
                torch.set_default_dtype(torch.float32)

    library, common = ([v for k, v in paths.items() if k.startswith(kind)] for kind in ("task", "gks"))
    expected = logits(library, common, bool(general), tmp_path / "theirs")
    read = load_peft(model, tmp_path / "theirs" / "arrow_router")
    assert read.adapters[0].method.v == "power" and len(read.adapters[0].method.experts) == 3
    ours = read.logits(batch(input_ids=ids))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10 * abs(expected).max())
    save_peft(read, tmp_path / "ours")
    again = logits([str(tmp_path / "ours" / f"task_{k}") for k in range(3)], None, False)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-10 * abs(expected).max())
    exact = attach(model, Arrow.from_adapters(
        [load_peft(model, p).adapters[0] for p in library], [load_peft(model, p).adapters[0] for p in common],
        top_k=2, temperature=0.7,
    )).logits(batch(input_ids=ids))  # fmt: skip
    assert abs(exact - expected).max() > 1e-9 * abs(expected).max()  # 15 steps are not the end
