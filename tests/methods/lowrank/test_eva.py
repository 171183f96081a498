import dataclasses
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach, measure
from minipeft.checkpoints import load
from minipeft.conformance import tiny
from minipeft.drawing import draw_all
from minipeft.errors import Bad
from minipeft.method import Site
from minipeft.methods.lowrank.eva import EVA
from minipeft.model.batch import batch
from minipeft.targets import select


def site(name, batches, out=3):
    return Site(name, (out, batches[0].shape[1]), "linear", None, None, inputs=batches)


def spread(seed, deviations, n=40, batches=3):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((len(deviations),) * 2))[0]
    return [
        rng.standard_normal((n, len(deviations))) * deviations @ Q + rng.standard_normal(len(deviations))
        for _ in range(batches)
    ]


def principal(X):
    """Eigenvalues, descending, and eigenvectors, as rows, of the scatter matrix of X."""
    X = X - X.mean(axis=0)
    values, vectors = np.linalg.eigh(X.T @ X)
    return values[::-1], vectors.T[::-1]


def starts(method, sites):
    """{site: {name: array}} as it starts, of the sites that are not given up."""
    drawn = draw_all(method, sites, np.random.default_rng(0))
    return {name: {k: a for k, (a, _) in own.items()} for name, (_, own) in drawn.items()}


def test_directions_are_those_of_all_batches_together():
    """With as many components as inputs are wide, nothing is lost between batches."""
    batches = spread(0, [5, 3, 2, 1, 0.5, 0.2])
    method = EVA(r=6, rho=1.0, tau=1.0, passes=1)  # tau = 1: never settled
    A = starts(method, [site("q.weight", batches)])["q.weight"]["A"]
    values, vectors = principal(np.vstack(batches))
    assert np.allclose(abs((A * vectors).sum(axis=1)), 1) and np.allclose(A @ A.T, np.eye(6), atol=1e-12)
    assert (A[np.arange(6), abs(A).argmax(axis=1)] > 0).all()
    whitened = starts(dataclasses.replace(method, whiten=True), [site("q.weight", batches)])
    assert np.allclose(np.linalg.norm(whitened["q.weight"]["A"], axis=1), values**-0.25)


def test_ranks_go_where_they_explain_most():
    """Against a ranking of the eigenvalues' shares of variance."""
    inputs = {
        "a.weight": spread(1, [9, 1, 1, 1, 1, 1]),
        "b.weight": spread(2, [3, 3, 3, 3, 1, 0.1]),
        "c.weight": spread(3, [1] * 6),
    }
    method = EVA(r=2, rho=2.5, tau=1.0, passes=1)
    arrays = starts(method, [site(k, v) for k, v in inputs.items()])
    shares = []
    for name, batches in inputs.items():
        values, _ = principal(np.vstack(batches))
        shares += [(v / values.sum(), name) for v in values[:5]]
    best = [name for _, name in sorted(shares, reverse=True)[:6]]
    assert {name: len(own["A"]) for name, own in arrays.items()} == {n: best.count(n) for n in inputs if n in best}
    assert len(set(best)) > 1 and best.count("b.weight") > 2


def test_sites_of_other_ranks_share_one_budget():
    """As a pattern gives them: Σ r goes where it explains most, and α follows from each site's own r."""
    inputs = {n: spread(i, [4, 3, 2, 1, 0.5, 0.2]) for i, n in enumerate(("a.weight", "b.weight", "c.weight"))}
    method = EVA(r=1, alpha=6.0, rho=3.0, tau=1.0, passes=1)
    other = {"b.weight": dataclasses.replace(method, r=2, alpha=5.0)}
    drawn = draw_all(method, [site(k, v) for k, v in inputs.items()], np.random.default_rng(0), other)
    shares = []
    for name, batches in inputs.items():
        values, _ = principal(np.vstack(batches))
        shares += [(v / values.sum(), name) for v in values[: 6 if name in other else 3]]
    best = [name for _, name in sorted(shares, reverse=True)[:4]]
    assert {name: m.r for name, (m, _) in drawn.items()} == {n: best.count(n) for n in inputs if n in best}
    for name, (m, _) in drawn.items():
        assert np.isclose(m.scale, other.get(name, method).scale)
    same = dict.fromkeys(inputs, inputs["a.weight"])
    drawn = draw_all(EVA(r=1, rho=1.0), [site(k, v) for k, v in same.items()], np.random.default_rng(0), other)
    assert [m.r for m, _ in drawn.values()] == [2, 1, 1]  # equal inputs have as many directions as the largest


def test_a_site_that_keeps_nothing_is_given_up_and_the_scale_stays():
    model = tiny.model()
    batch = tiny.example(model, padding="none")
    for rslora in (False, True):
        method = EVA(r=3, alpha=6.0, rho=4.0, rslora=rslora)
        adapter = attach(model, method, targets="all-linear", data=[batch]).adapters[0]
        found = {s: m.r for s, m in adapter.at.items()}
        assert sum(found.values()) == 3 * 14 and len(set(found.values())) > 1
        assert all(adapter.arrays[f"{s}:A"].shape[0] == r for s, r in found.items())
        assert np.allclose([m.scale for m in adapter.at.values()], method.scale)
    kept = attach(
        model, EVA(r=3, alpha=6.0, rho=4.0, adjust_scaling=False), targets="all-linear", data=[batch]
    ).adapters[0]
    assert all(np.isclose(m.scale, 6.0 / m.r) for m in kept.at.values())
    loud, quiet = spread(5, [3, 3, 3, 3]), spread(6, [1.0] * 12, n=60)
    given_up = starts(EVA(r=1, rho=4.0), [site("a.weight", loud), site("b.weight", quiet)])
    assert set(given_up) == {"a.weight"} and len(given_up["a.weight"]["A"]) == 2


def test_equal_inputs_share_and_the_first_is_served_first():
    batches = spread(4, [5, 1, 1, 1])
    arrays = starts(EVA(r=2, rho=2.0), [site(n, batches) for n in ("q.weight", "k.weight", "v.weight")])
    ranks = [len(own["A"]) for own in arrays.values()]
    assert sum(ranks) == 6 and ranks == sorted(ranks, reverse=True)
    assert all(np.array_equal(own["A"][:1], arrays["q.weight"]["A"][:1]) for own in arrays.values())


def test_padding_is_no_input():
    model = tiny.model()
    batch = tiny.example(model, padding="right")
    (seen,) = measure(Adapted(model), select(model, "layers.0.attn.q.weight"), [batch], ("inputs",))
    assert seen.inputs[0].shape == (int(batch.attention_mask.sum()), 24) and seen.inputs[0].shape[0] < 21


def test_tokens_without_a_label_are_no_input_unless_asked_for():
    """A prompt has none; a classifier's labels are not of tokens, and an encoder's tokens are not those that have labels."""
    model = tiny.model()
    given = tiny.example(model, padding="right")
    ids, mask = given.host("input_ids"), given.host("attention_mask")
    labels = np.where((np.arange(ids.shape[1]) >= 3) & (mask == 1), ids, -100)
    asked = batch(input_ids=ids, attention_mask=mask, labels=labels)
    (seen,) = measure(Adapted(model), select(model, "layers.0.attn.q.weight"), [asked, given], ("inputs",))
    assert [len(x) for x in seen.inputs] == [mask.sum()] * 2 == [len(x) for x in seen.labelled]
    assert (seen.labelled[0] == (labels != -100)[mask == 1]).all() and 0 < seen.labelled[0].sum() < mask.sum()
    assert seen.labelled[1].all()  # its labels are missing at padding alone
    X, answers = seen.inputs[0], seen.inputs[0][seen.labelled[0]]
    for method, wanted in ((EVA(r=2, rho=1.0, passes=1), answers), (EVA(r=2, rho=1.0, passes=1, labelled=False), X)):
        one = dataclasses.replace(seen, inputs=seen.inputs[:1], labelled=seen.labelled[:1])
        A = starts(method, [one])[one.name]["A"]
        assert np.allclose(abs((A * principal(wanted)[1][:2]).sum(axis=1)), 1)
    for family, site in (("bert", "layers.0.attn.q.weight"), ("t5", "encoder.layers.0.attn.q.weight")):
        other = tiny.model(family)
        (seen,) = measure(Adapted(other), select(other, site), [tiny.example(other)], ("inputs",))
        assert seen.labelled[0].all()


def test_a_first_batch_without_inputs_does_not_make_sites_alike():
    none, loud, quiet = np.zeros((0, 4)), spread(0, [5, 1, 1, 1]), spread(1, [1, 1, 1, 5])
    arrays = starts(EVA(r=1, rho=1.0), [site("a.weight", [none, *loud]), site("b.weight", [none, *quiet])])
    assert abs(arrays["a.weight"]["A"] @ arrays["b.weight"]["A"].T) < 0.9


def test_refuses():
    with pytest.raises(Bad, match="eva: rho must be at least 1"):
        EVA(rho=0.5)
    model = tiny.model()
    with pytest.raises(Bad, match=r"eva: expected linears, found embed.tokens.weight"):
        attach(model, EVA(), targets="embed.tokens.weight", data=[tiny.example(model)])


@pytest.mark.hf
@pytest.mark.parametrize("ranks", [{}, {"b": 3}])
@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_peft_finds_the_same_directions_and_ranks(rho, ranks):
    import torch
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = torch.nn.Linear(8, 6), torch.nn.Linear(6, 5), torch.nn.Linear(8, 4)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x))) + self.c(x)[..., :1]

    torch.manual_seed(0)
    data = [torch.randn(64, 8) @ torch.diag(torch.tensor([5, 3, 2, 1.5, 1, 0.7, 0.5, 0.3])) for _ in range(4)]
    net = Net()
    with torch.no_grad():
        hidden = [torch.tanh(net.a(x)) for x in data]
    inputs = dict(a=data, b=hidden, c=data)
    config = LoraConfig(
        r=2, target_modules=["a", "b", "c"], init_lora_weights="eva", eva_config=EvaConfig(rho=rho, tau=0.9),
        rank_pattern=ranks, lora_alpha=6,
    )  # fmt: skip
    model = get_peft_model(net, config)
    own = dict(
        forward_fn=lambda m, x: m(x),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    initialize_lora_eva_weights(model, data, **own)
    sites = [site(f"{n}.weight", [x.numpy() for x in xs], out=4) for n, xs in inputs.items()]
    method = EVA(r=2, alpha=6.0, rho=rho, tau=0.9)
    at = {f"{n}.weight": dataclasses.replace(method, r=r) for n, r in ranks.items()}
    drawn = draw_all(method, sites, np.random.default_rng(0), at)
    for n in inputs:
        theirs = getattr(model.base_model.model, n)
        own, arrays = drawn[f"{n}.weight"]
        assert np.allclose(arrays["A"][0], theirs.lora_A["default"].weight.detach().numpy(), atol=1e-4)
        assert own.r == theirs.r["default"] and np.isclose(own.scale, theirs.scaling["default"])


@pytest.mark.hf
def test_peft_leaves_out_the_same_tokens():
    """On a whole model, whose prompts have no labels."""
    import torch
    import transformers
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    base = Path(__file__).parents[2] / "data" / "peft" / "llama" / "base"
    rng, data = np.random.default_rng(0), []
    for _ in range(3):
        ids = rng.integers(3, 43, (8, 12))
        labels = np.where(np.arange(12) >= rng.integers(2, 7, (8, 1)), ids, -100)
        data.append(dict(input_ids=ids, attention_mask=np.ones_like(ids), labels=labels))
    config = LoraConfig(
        r=2,
        target_modules=["q_proj", "o_proj", "down_proj"],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=2.0, tau=0.9),
    )
    theirs = get_peft_model(transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    given = [{k: torch.tensor(a) for k, a in d.items()} for d in data]
    initialize_lora_eva_weights(theirs, given, show_progress_bar=False)
    own = attach(
        load(base, np.float64),
        EVA(r=2, rho=2.0, tau=0.9),
        targets="q_proj o_proj down_proj",
        data=[batch(**d) for d in data],
    )
    found = {}
    for name, module in theirs.named_modules():
        if hasattr(module, "lora_A"):
            key = f"{own.model.names.ours(name.removeprefix('base_model.model.'))}.weight"
            found[key] = module.lora_A["default"].weight.detach().numpy()
    arrays = {k.removesuffix(":A"): a for k, a in own.adapters[0].arrays.items() if k.endswith(":A")}
    assert arrays.keys() == found.keys() and len({len(a) for a in arrays.values()}) > 1
    for k, a in arrays.items():
        assert a.shape == found[k].shape and np.allclose(abs((a * found[k]).sum(axis=1)), 1, atol=1e-3), k
