import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.conformance import tiny
from minipeft.errors import Bad, Unfit
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.methods.routing.shadow import Shadow, backbone
from minipeft.model.batch import batch
from minipeft.model.generate import generate
from minipeft.run import Run

TESTS = Path(__file__).parents[2]
IDS = np.array([[5, 9, 3, 17, 30], [8, 30, 4, 11, 2]])
FIRST = "embed.tokens.out"
MASK = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def moved(adapted, by=0.3):
    rng = np.random.default_rng(0)
    return adapted.replace({k: v + by * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def first_state(adapted, given):
    """The state before any layer: a base whose layers do nothing but look."""
    run, seen = Run(adapted), []
    hook = run._hooks["layers.0"][0]
    run._hooks["layers.0"] = [dataclasses.replace(hook, method=Look(seen), arrays={}), *run._hooks["layers.0"]]
    run.forward(given)
    return seen[0]


class Look:
    """Sees the state that is there as a layer is called for."""

    def __init__(self, seen):
        self.seen = seen

    def apply(self, f, here):
        self.seen.append(here.state["s"])
        return f


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bert-cls"])
def test_a_backbone_with_the_bases_arrays_is_the_base(family):
    """Every part at its place: rotations, groups of heads, biases, windows, padding, norms; s is the base's last hidden state."""
    model = load(TESTS / "data" / "peft" / family / "base", np.float64)
    adapted = attach(model, Shadow(r=3, depth=model.arch.layers, auxiliary=0.0))
    theta = adapted.theta
    own = {k: model.params[name] for k, name in backbone(adapted.adapters[0].method, model.arch, FIRST)[1].items()}
    assert {f"default/:{k}" for k in own} == {k for k in theta if "/:" in k}
    theta = {k: np.array(own[k.rpartition(":")[2]]) if "/:" in k else v for k, v in theta.items()}
    for mask in (MASK, np.ones_like(MASK)):
        given = batch(input_ids=IDS, attention_mask=mask)
        want = Adapted(model).forward(given).hidden
        assert abs(first_state(adapted.replace(theta), given) - want).max() <= 1e-12 * abs(want).max()


def test_what_the_last_layer_makes_of_the_state_is_read_by_none():
    adapted = moved(attach(tiny.model(), Shadow(r=3)))
    grads = adapted.value_and_grad(batch(input_ids=IDS, labels=IDS))[1]
    idle = {k for k, g in grads.items() if not np.any(g)}
    last = adapted.model.arch.layers - 1
    assert idle == {f"default/layers.{last}:{a}{n}" for a in "TtGg" for n in (1, 2)}


@pytest.mark.parametrize("settings", [dict(), dict(inner=10, heads=3)], ids=str)
def test_the_loss_has_a_part_of_that_of_the_first_state(settings):
    """By hand: each token's probability after the first state's row of scores."""
    adapted = moved(attach(tiny.model(), Shadow(r=3, auxiliary=0.3, **settings)))
    given = batch(input_ids=IDS, labels=np.where(IDS == 11, -100, IDS))
    z = first_state(adapted, given) @ adapted.model.params["head.weight"].T
    terms = [
        np.log(np.exp(z[b, t]).sum()) - z[b, t, IDS[b, t + 1]] for b in (0, 1) for t in range(4) if IDS[b, t + 1] != 11
    ]
    task = adapted.loss(None, given, penalty=False)
    np.testing.assert_allclose(adapted.loss(None, given), task + 0.3 * np.mean(terms), rtol=1e-13)


def test_a_table_of_its_own_needs_ids():
    adapted = attach(tiny.model(), Shadow(table="own"))
    with pytest.raises(Bad, match=r"expected input_ids, .* found inputs_embeds"):
        adapted.logits(batch(inputs_embeds=np.ones((1, 3, 24))))


def test_no_token_sees_a_later_one():
    adapted = moved(attach(tiny.model(), Shadow(r=3, depth=2)))
    other = IDS.copy()
    other[:, -1] = 1
    one, two = (adapted.logits(batch(input_ids=i)) for i in (IDS, other))
    assert np.array_equal(one[:, :-1], two[:, :-1]) and abs(one[:, -1] - two[:, -1]).max() > 1e-3


def test_a_correction_is_of_rank_r_and_0_where_state_and_stream_agree():
    method, rng = Shadow(r=2, alpha=0.7), np.random.default_rng(3)
    adapted = moved(attach(tiny.model(), method))
    own = {k.rpartition(":")[2]: v for k, v in adapted.theta.items() if "layers.0:" in k}
    run = adapted.run()
    here = run._hooks["layers.0"][0].here
    s, h = rng.standard_normal((2, 1, 40, 24))
    given = []
    for x in (h, s):
        here.state["s"] = s
        method.corrected(lambda h: given.append(h) or h, x, here, **own)
    assert np.linalg.matrix_rank((given[0] - h)[0]) == 2
    assert np.array_equal(given[1], s)


def test_dropout_is_of_what_state_and_stream_differ_in(monkeypatch):
    """Before W_down: as wide as the model, and none in evaluation."""
    seen = []
    monkeypatch.setattr(Run, "dropout", lambda self, x, p: seen.append((x.shape, p)) or x * 0)
    adapted = moved(attach(tiny.model(), Shadow(r=3, dropout=0.4)))
    given = batch(input_ids=IDS)
    evaluated = adapted.logits(given)
    assert not seen
    off = adapted.run(train=True).forward(given).logits
    assert seen == [((2, 5, 24), 0.4)] * adapted.model.arch.layers
    assert np.array_equal(off, Adapted(adapted.model).logits(given)) and abs(evaluated - off).max() > 1e-3


def test_generation_goes_over_the_whole_text_again():
    adapted = moved(attach(tiny.model(), Shadow(r=3)))
    ids = IDS
    for _ in range(4):
        ids = np.concatenate([ids, adapted.logits(batch(input_ids=ids))[:, -1].argmax(-1)[:, None]], axis=1)
    assert generate(adapted, batch(input_ids=IDS), 4).tolist() == ids[:, 5:].tolist()


def test_where_it_cannot_be():
    for family in ("t5", "vit"):
        with pytest.raises(Unfit, match="expected one stack over text"):
            attach(tiny.model(family), Shadow())
    alone = attach(tiny.model(), Shadow(), targets="layers.1")
    with pytest.raises(Bad, match=r"expected embed\.tokens\.out among the targets"):
        alone.logits(batch(input_ids=IDS))
    with pytest.raises(Bad, match="no weight but 1"):
        attach(tiny.model(), Shadow()).using(default=0.5)


@pytest.fixture
def saved(tmp_path):
    """An adapter of PEFT, whose configuration may be changed."""
    source = TESTS / "data" / "peft" / "llama" / "shadow" / "adapter"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def read(**changes):
        config = json.loads((source / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        return load_peft(load(TESTS / "data" / "peft" / "llama" / "base"), tmp_path)

    return read


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(shadow_hidden_size=12), "lacks base_model.shadow_backbone.default.embed_tokens.weight and 1 more"),
        (dict(shadow_num_attention_heads=2), r"expected shape \(12,\), found \(24,\)"),
        (dict(shadow_num_attention_heads=3), "heads must be a multiple of 2, .* found 3"),
        (dict(share_embeddings=False), "lacks base_model.shadow_backbone.default.embed_tokens.weight"),
        (dict(shadow_model="some/model"), "shadow_model"),
        (dict(task_type="SEQ_CLS"), "SEQ_CLS"),
        (dict(shadow_num_hidden_layers=2), "lacks base_model.shadow_backbone.default.layers.1"),
        (dict(target_modules=["model.layers.1"]), "are no target_modules, the first model.layers.0"),
        (dict(shadow_intermediate_size=9), "shape"),
    ],
)  # fmt: skip
def test_files_that_are_refused(saved, changes, says):
    with pytest.raises(Bad, match=says):
        saved(**changes)


def test_a_file_is_read_and_written_back(saved, tmp_path):
    one = saved(shadow_hidden_size=24, shadow_num_attention_heads=4, layers_to_transform=[1])
    save_peft(one, tmp_path / "again")
    two = load_peft(one.model, tmp_path / "again")
    assert one.theta.keys() == two.theta.keys()
    assert all(np.array_equal(v, two.theta[k]) for k, v in one.theta.items())


def test_layers_that_are_apart_are_not_written(tmp_path):
    model = tiny.model()
    deep = {k.replace("layers.1.", "layers.2."): v for k, v in model.params.items()} | dict(model.params)
    deep_model = dataclasses.replace(model, arch=dataclasses.replace(model.arch, layers=3), params=deep)
    adapted = attach(deep_model, Shadow(r=2), targets="embed.out layers.0 layers.2")
    adapted.logits(batch(input_ids=IDS))
    with pytest.raises(Bad, match="follow one another, found 0, 2"):
        save_peft(adapted, tmp_path)


@pytest.mark.hf
@pytest.mark.parametrize("padding", [0, 2])
def test_peft_generates_the_same_with_its_two_caches(padding, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS / "interop" / "peft"))
    monkeypatch.syspath_prepend(str(TESTS / "record"))
    import float64
    import torch
    from test_hf_peft_live import read_by_peft

    model = load(TESTS / "data" / "peft" / "llama" / "base", np.float64)
    adapted = moved(attach(model, Shadow(r=3, alpha=0.7, depth=2)))
    save_peft(adapted, tmp_path)
    mask = np.ones_like(IDS)
    mask[0, :padding] = 0
    theirs, modules = read_by_peft(float64, "llama", tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        with float64.as_float64(*modules), torch.no_grad():
            given = dict(input_ids=torch.tensor(IDS * mask), attention_mask=torch.tensor(mask))
            want = theirs.generate(**given, max_new_tokens=6, do_sample=False, use_cache=True).numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    got = generate(load_peft(model, tmp_path), batch(input_ids=IDS * mask, attention_mask=mask), 6)
    assert got.tolist() == want[:, 5:].tolist()
