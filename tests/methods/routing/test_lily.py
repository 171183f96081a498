import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.checkpoints.files import read_json
from minipeft.checkpoints.native import load_adapter, save_adapter
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.merging import merge
from minipeft.methods.routing.lily import Lily

Q, O = "layers.{}.attn.q.weight", "layers.{}.attn.o.weight"


def setting(seed=0, shape=(6, 4), **fields):
    rng = np.random.default_rng(seed)
    W, b, x = rng.standard_normal(shape), rng.standard_normal(shape[0]), rng.standard_normal((3, 5, shape[1]))
    method = Lily(**dict(r=3, experts=4, s=1.5) | fields)
    return method, one_part.arrays(method, one_part.site(W), rng, moved=0.7), W, b, x


def held(adapted, name):
    return [k.rpartition(":")[0] for k in adapted.adapters[0].arrays if k.endswith(f":{name}")]


def moved(adapted, seed=0):
    rng = np.random.default_rng(seed)
    return adapted.replace({k: v + 0.5 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def test_all_tokens_of_the_batch_choose_one_mixture():
    method, a, W, b, x = setting()
    z = np.array([a["R"] @ a["A"] @ token for token in x.reshape(-1, 4)])
    shares = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)).mean(axis=0)
    change = sum(p * a["B"][3 * e : 3 * e + 3].T @ a["A"] for e, p in enumerate(shares))
    got = one_part.output(method, a, x, W, b)
    np.testing.assert_allclose(got, x @ (W + 1.5 * change).T + b, rtol=0, atol=1e-13)
    alone = one_part.output(method, a, x[:1], W, b)
    assert abs(alone - got[:1]).max() > 0.01  # what comes of a text depends on the texts beside it
    tokens = one_part.output(method, a, x.reshape(-1, 4), W, b)
    np.testing.assert_allclose(tokens, got.reshape(-1, 6), rtol=0, atol=1e-13)


def test_equal_experts_are_low_rank_adaptation():
    method, a, W, b, x = setting()
    one = a["B"][:3]
    got = one_part.output(method, a | {"B": np.tile(one, (4, 1))}, x, W, b)
    np.testing.assert_allclose(got, x @ (W + 1.5 * one.T @ a["A"]).T + b, rtol=0, atol=1e-13)


def test_layers_share_experts_and_consecutive_ones_what_goes_in():
    adapted = attach(tiny.model(), Lily(r=2), targets="attn.q.weight attn.v.weight")
    every = [f"layers.{i}.attn.{k}.weight" for i in (0, 1) for k in "qv"]
    assert held(adapted, "B") == every[:2] and held(adapted, "A") == held(adapted, "R") == every
    assert held(attach(tiny.model(), Lily(r=2, stride=2), targets="attn.q.weight attn.v.weight"), "A") == every[:2]
    both = attach(tiny.model(), Lily(r=2, stride=3, group="both"), targets="attn.q.weight attn.o.weight")
    assert held(both, "B") == [Q.format(0)] and held(both, "A") == [Q.format(0), O.format(1)]
    t5 = attach(tiny.model("t5"), Lily(r=2), targets="attn.q.weight cross.q.weight")
    assert held(t5, "B") == ["encoder.layers.0.attn.q.weight", Q.format(0), "layers.0.cross.q.weight"]


def test_groups_are_in_our_files(tmp_path):
    model = tiny.model()
    adapted = moved(
        attach(model, Lily(r=2), targets="attn.q.weight attn.o.weight", patterns={"attn.o.weight": {"group": "o"}})
    )
    save_adapter(adapted, tmp_path)
    again, batch = load_adapter(model, tmp_path), tiny.example(model)
    assert {s: m.group for s, m in again.adapters[0].at.items()} == {
        k.format(i): g for i in (0, 1) for k, g in [(Q, ""), (O, "o")]
    }
    assert np.array_equal(again.logits(batch), adapted.logits(batch))


@pytest.mark.parametrize("group", ["", "all"])
def test_groups_are_in_files_of_peft(group, tmp_path):
    model = tiny.model()
    adapted = moved(attach(model, Lily(r=2, stride=3, group=group), targets="attn.q.weight attn.o.weight"))
    save_peft(adapted, tmp_path)
    again, batch = load_peft(model, tmp_path), tiny.example(model)
    assert again.theta.keys() == adapted.theta.keys()
    np.testing.assert_allclose(again.logits(batch), adapted.logits(batch), rtol=0, atol=0)


def test_a_group_without_some_of_its_name_leaves_them_out_in_files_of_peft(tmp_path):
    model, own = tiny.model(layers=3), {O.format(n): {"group": "o"} for n in (1, 2)}
    adapted = moved(attach(model, Lily(r=2), targets=["attn.q.weight", *own], patterns=own))
    save_peft(adapted, tmp_path)
    assert read_json(tmp_path / "adapter_config.json")["exclude_modules"] == ["model.layers.0.self_attn.o_proj"]
    assert load_peft(model, tmp_path).theta.keys() == adapted.theta.keys()


def test_what_is_shared_is_one_in_files_of_peft(tmp_path):
    from minipeft.checkpoints.files import read_tensors, write_tensors

    save_peft(attach(tiny.model(), Lily(r=2, stride=2), targets="attn.q.weight"), tmp_path)
    tensors = dict(read_tensors(tmp_path / "adapter_model.safetensors"))
    for end in ("lily_A.weight", "lily_B.weight"):
        key = f"base_model.model.model.layers.1.self_attn.q_proj.{end}"
        write_tensors(tmp_path / "adapter_model.safetensors", tensors | {key: tensors[key] + 1}, {"format": "pt"})
        with pytest.raises(Bad, match=rf"layers\.1\S*{end} and \S*layers\.0\S*{end} differ, which are one"):
            load_peft(tiny.model(), tmp_path)


def test_groups_that_peft_cannot_make_are_not_written(tmp_path):
    model = tiny.model()
    one = Lily(r=2, group="one")
    odd = attach(model, one, targets=["attn.q.weight", "attn.o.weight"], patterns={O.format(1): {"group": "two"}})
    with pytest.raises(Bad, match="lily: no target_modules make PEFT share as this does"):
        save_peft(odd, tmp_path)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Bad, match="lily: experts must be at least 2, found 1"):
        Lily(experts=1)
    with pytest.raises(Bad, match="stride must be at least 1"):
        Lily(stride=0)
    with pytest.raises(Bad, match="does not merge"):
        merge(attach(tiny.model(), Lily()))
    with pytest.raises(Bad, match=r"layers.0.attn.v.weight shares B with layers.0.attn.q.weight"):
        attach(tiny.model(), Lily(group="all"), targets="attn.q.weight attn.v.weight")
    many = one_part.arrays(Lily(r=50), one_part.site(np.zeros((9, 4))), np.random.default_rng(0))
    for name, bound in dict(A=4**-0.5, R=50**-0.5).items():
        assert 0.9 * bound < abs(many[name]).max() <= bound
    assert not many["B"].any()


@pytest.mark.hf
@pytest.mark.parametrize(("shape", "fields"), [((6, 4), {}), ((5, 9), dict(r=7, experts=2, s=0.4))])
def test_output_and_gradients_are_those_of_peft(shape, fields):
    import peft

    method, _, W, b, x = setting(shape=shape, **fields)
    c = np.random.default_rng(1).standard_normal((3, 5, shape[0]))
    config = peft.LilyConfig(r=method.r, num_B=method.experts, scaling=method.s, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c)
    names = dict(A="lily_A.weight", B="lily_B.weight", R="lily_router.weight")
    y, grads = one_part.forward_and_grads(method, {k: theirs.params[v] for k, v in names.items()}, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-12)
    for ours, name in names.items():
        np.testing.assert_allclose(grads[ours], theirs.grads[name], rtol=0, atol=1e-12)
