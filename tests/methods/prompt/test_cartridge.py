import dataclasses
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
from minipeft.methods.prompt.cartridge import Cartridge
from minipeft.methods.prompt.prefix_tuning import PrefixTuning
from minipeft.model.batch import batch
from minipeft.train import AdamW, fit

LLAMA = Path(__file__).parents[2] / "data" / "peft" / "llama" / "base"
TEXT = (7, 3, 9, 4, 12)
IDS = np.array([[5, 9, 3, 17, 30], [8, 30, 4, 11, 2]])


def rows(adapted, n=0):
    a = adapted.adapters[n].grouped()[""]
    return np.concatenate([a["F"], a["E"]]) if "F" in a else a["E"]


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_the_first_tokens_stay(frozen):
    start = attach(tiny.model(), Cartridge(p=4, frozen=frozen))
    assert start.adapters[0].size == (4 - frozen) * 2 * 2 * 3 * 4
    moved = rows(fit(start, [tiny.example(start.model)], steps=2, optimiser=AdamW(lr=0.1, weight_decay=0.5)).adapted)
    differ = (moved != rows(start)).all(axis=1)
    assert differ.tolist() == [False] * frozen + [True] * (4 - frozen)


def test_all_of_it_may_stay(tmp_path):
    """PEFT takes as many frozen tokens as there are: of one virtual token the usual one."""
    one = attach(tiny.model(), Cartridge(p=2, frozen=2))
    assert one.adapters[0].size == 0 and list(one.adapters[0].arrays) == [":F"]
    save_peft(one, tmp_path)
    again = load_peft(one.model, tmp_path)
    np.testing.assert_array_equal(again.logits(tiny.example(one.model)), one.logits(tiny.example(one.model)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [Cartridge, PrefixTuning])
@pytest.mark.parametrize("p", [2, 5])
def test_from_a_text_it_begins_as_the_base_that_has_read_its_first_tokens(family, method, p):
    model = tiny.model(family)
    adapted = attach(model, method(p=p, start="text", text=TEXT))
    read = np.concatenate([np.tile(TEXT[:p], (2, 1)), IDS], axis=1)
    want = Adapted(model).logits(batch(input_ids=read))[:, p:]
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS)), want, rtol=0, atol=1e-12)


def test_room_for_more_blocks_is_left_at_zero():
    some = rows(attach(tiny.model(), Cartridge(p=2, start="text", text=TEXT)))
    more = rows(attach(tiny.model(), Cartridge(p=2, start="text", text=TEXT, blocks=3)))
    assert (more[:, : some.shape[1]] == some).all() and not more[:, some.shape[1] :].any()


def test_two_in_use_are_one_of_all_rows():
    """The text starts after both, and the order of keys does not matter."""
    model = tiny.model()
    both = attach(attach(model, Cartridge(p=2)), Cartridge(p=3), name="other", seed=1)
    joined = np.concatenate([rows(both), rows(both, 1)])
    one = attach(model, Cartridge(p=5, frozen=2)).adapters[0]
    one = dataclasses.replace(one, arrays={":F": joined[:2], ":E": joined[2:]})
    want = Adapted(model, (one,)).logits(batch(input_ids=IDS))
    for order in (("default", "other"), ("other", "default")):
        np.testing.assert_allclose(both.using(*order).logits(batch(input_ids=IDS)), want, rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    for fields, word in [
        (dict(p=2, frozen=3), "frozen must be at most p = 2, found 3"),
        (dict(frozen=-1), "frozen must be at least 0"),
        (dict(hidden=3), "hidden must be at most 0"),
        (dict(start="zero"), "start must be 'normal' or 'text', found 'zero'"),
        (dict(p=6, start="text", text=TEXT), "needs text of at least p = 6 token ids"),
        (dict(text=TEXT), "start='text', and no other"),
    ]:
        with pytest.raises(Bad, match=word):
            Cartridge(**fields)
    with pytest.raises(Bad, match="and no hidden, found"):
        PrefixTuning(p=2, start="text", text=TEXT, hidden=4)
    with pytest.raises(Bad, match=r"input_ids: .*50"):
        attach(tiny.model(), Cartridge(p=2, start="text", text=(3, 50)))
    for family in ("bert", "t5"):
        with pytest.raises(Unfit, match="start='text' needs a decoder alone"):
            attach(tiny.model(family), Cartridge(p=2, start="text", text=TEXT))


@pytest.mark.hf
def test_the_start_from_a_text_is_that_of_peft():
    import peft
    import torch
    import transformers
    from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

    base = transformers.LlamaForCausalLM.from_pretrained(LLAMA, dtype=torch.float64)
    config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_frozen_tokens=2)
    model = peft.get_peft_model(base, config)
    with torch.no_grad(), model.disable_adapter():
        past = model(torch.tensor([TEXT]), use_cache=True).past_key_values
    pairs = [(layer.keys, layer.values) for layer in past.layers]
    initialize_kv_prefix_from_past_key_values(model, past_key_values=pairs, num_virtual_tokens=4)
    want = model.prompt_encoder["default"].weight.detach().numpy()
    got = rows(attach(load(LLAMA, np.float64), Cartridge(p=4, frozen=2, start="text", text=TEXT)))
    np.testing.assert_allclose(
        got, want, rtol=0, atol=8 * 2.0**-24 * abs(want).max()
    )  # its norms and angles are in float32
