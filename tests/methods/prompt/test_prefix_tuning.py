import dataclasses

import numpy as np
import pytest
import reference

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.prompt.prefix_tuning import PrefixTuning
from minipeft.model.batch import batch

IDS = np.array([5, 9, 3, 17, 30])


@pytest.mark.parametrize("hidden", [0, 7])
@pytest.mark.parametrize("positions, start", [("after", 3), ("zero", 0)])
def test_keys_and_values_of_grouped_heads(hidden, positions, start):
    """Row 2l of the flat prefix is layer l's keys, row 2l + 1 its values, each in groups of the key/value heads."""
    adapted = attach(tiny.model(), PrefixTuning(p=3, hidden=hidden, positions=positions))
    s, arch = adapted.adapters[0].grouped()[""], adapted.model.arch
    flat = s["E"] if not hidden else np.tanh(s["E"] @ s["A1"].T + s["c1"]) @ s["A2"].T + s["c2"]
    rows = flat.reshape(3, 2 * arch.layers, arch.kv, arch.dh)

    def keys(k, v, n):
        return [*rows[:, 2 * n], *k], [*rows[:, 2 * n + 1], *v]

    want = reference.llama(adapted.model, IDS, start=start, keys=keys)
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


def test_zero_keys_are_no_identity():
    model = tiny.model()
    adapted = attach(model, PrefixTuning(p=3, start="zero", positions="zero"))
    none = np.zeros((model.arch.kv, model.arch.dh))
    want = reference.llama(model, IDS, keys=lambda k, v, n: ([none] * 3 + k, [none] * 3 + v))
    got = adapted.logits(batch(input_ids=IDS[None]))[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    assert abs(got - reference.llama(model, IDS)).max() > 1e-3


def test_an_unknown_layout_is_refused():
    with pytest.raises(Bad, match="layout must be 'ordered' or 'peft', found 'other'"):
        PrefixTuning(layout="other")


def windowed(window, layers=2):
    model = tiny.model()
    return dataclasses.replace(model, arch=dataclasses.replace(model.arch, window=window, layers=layers))


@pytest.mark.parametrize(("window", "sees"), [("all", lambda t, j, w: True), ("past", lambda t, j, w: t - (j - 3) < w)])
def test_which_tokens_see_a_prefix_under_a_sliding_window(window, sees):
    """A key of the prefix moves those tokens alone that see it: all, or those whose window reaches it."""
    model = windowed(4, layers=1)
    adapted = attach(model, PrefixTuning(p=3, window=window))
    before = adapted.logits(batch(input_ids=IDS[None]))[0]
    for j in range(3):
        E = adapted.theta["default/:E"].copy()
        E[j] += 1
        moved = (
            abs(adapted.replace({"default/:E": E}).logits(batch(input_ids=IDS[None]))[0] - before).max(axis=1) > 1e-9
        )
        assert moved.tolist() == [sees(t, j, 4) for t in range(len(IDS))]


def test_prefixes_of_both_kinds_under_one_window():
    """Two prefixes in one block: each is seen as its own setting says, whatever stands between it and the text."""
    for first, second in [("all", "past"), ("past", "all")]:
        model = windowed(2, layers=1)
        adapted = attach(attach(model, PrefixTuning(p=1, window=first)), PrefixTuning(p=1, window=second), name="outer")
        before = adapted.logits(batch(input_ids=IDS[None]))[0]
        for name, window, place in [("default", first, -1), ("outer", second, -2)]:
            E = adapted.theta[f"{name}/:E"] + 1
            moved = abs(adapted.replace({f"{name}/:E": E}).logits(batch(input_ids=IDS[None]))[0] - before).max(axis=1)
            assert (moved > 1e-9).tolist() == [window == "all" or t - place < 2 for t in range(len(IDS))]


def test_generation_moves_the_window_past_the_prefix():
    """Token by token with a cache, the same ids come as from whole passes."""
    from minipeft.model.generate import generate

    adapted = attach(windowed(3), PrefixTuning(p=2, window="past"))
    new = generate(adapted, batch(input_ids=IDS[None]), 5)[0].tolist()
    for n, token in enumerate(new):
        logits = adapted.logits(batch(input_ids=np.array([[*IDS, *new[:n]]])))
        assert logits[0, -1].argmax() == token


def test_more_blocks_than_layers():
    """The rows of the first layers count; with layout="peft" a layer takes those of block 2l mod n."""
    model = tiny.model()
    rng = np.random.default_rng(1)
    k = model.arch.kv * model.arch.dh
    E = rng.standard_normal((2, 5, 2 * k))
    wide = attach(model, PrefixTuning(p=2, blocks=5, layout="peft"))
    wide = wide.replace({"default/:E": E.reshape(2, -1)})
    narrow = attach(model, PrefixTuning(p=2))
    narrow = narrow.replace({"default/:E": E[:, [0, 2]].reshape(2, -1)})
    given = batch(input_ids=IDS[None])
    assert model.arch.layers == 2
    assert (wide.logits(given) == narrow.logits(given)).all()
    with pytest.raises(Bad, match="blocks must be at least 2, the number of its sites, found 1"):
        attach(model, PrefixTuning(p=2, blocks=1))


@pytest.mark.hf
@pytest.mark.parametrize("hidden", [0, 5])
def test_the_start_at_zero_is_that_of_peft(hidden):
    """Every prefix is 0, be it by itself or by the projection's last linear, whose other factors are drawn."""
    import torch
    from peft import PrefixTuningConfig
    from peft.tuners.prefix_tuning import PrefixEncoder

    config = PrefixTuningConfig(
        num_virtual_tokens=3, token_dim=12, num_layers=2, num_attention_heads=3, init_weights="zero", prefix_projection=hidden > 0,
        encoder_hidden_size=hidden or None,
    )  # fmt: skip
    theirs = {k: v.numpy() for k, v in PrefixEncoder(config).state_dict().items()}
    names = dict(
        E="embedding.weight",
        A1="transform.0.weight",
        c1="transform.0.bias",
        A2="transform.2.weight",
        c2="transform.2.bias",
    )
    mine = attach(tiny.model(), PrefixTuning(p=3, hidden=hidden, start="zero")).adapters[0]
    own = mine.grouped()[""]
    assert {names[k]: a.shape for k, a in own.items()} == {k: a.shape for k, a in theirs.items()}
    assert {k: bool(a.any()) for k, a in own.items()} == {k: bool(theirs[names[k]].any()) for k in own}
    assert not mine.method.flat(**own).any()
    config.inference_mode = False
    assert not PrefixEncoder(config)(torch.arange(3)[None]).detach().numpy().any()
