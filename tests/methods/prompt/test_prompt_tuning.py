import dataclasses

import numpy as np
import pytest
import reference

from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.prompt.prompt_tuning import PromptTuning
from minipeft.model.arch import batch
from minipeft.run import attach

IDS = np.array([5, 9, 3, 17, 30])


def test_rows_stand_before_the_text():
    adapted = attach(tiny.model(), PromptTuning(p=3))
    P = adapted.adapters[0].arrays["embed.tokens.out:P"]
    want = reference.llama(adapted.model, IDS, embedded=lambda h: np.concatenate([P, h]))
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "family, side", [*((f, "right") for f in ("llama", "gpt2", "bert", "t5")), ("llama", "left"), ("gpt2", "left")]
)
def test_padding_changes_nothing(family, side):
    """A row alone, without padding, has the logits it has in a padded batch."""
    model = tiny.model(family)
    adapted, given = attach(model, PromptTuning(p=3)), tiny.example(model, padding=side)
    if side == "left":  # positions follow the mask
        given = dataclasses.replace(given, position_ids=np.maximum(given.attention_mask.cumsum(axis=1) - 1, 0))
    together = adapted.logits(given)
    for row in range(3):
        shown = given.attention_mask[row] == 1
        labels = given.labels[row][shown] if given.labels.ndim == 2 and family != "t5" else given.labels[row]
        alone = adapted.logits(batch(input_ids=given.input_ids[row][shown][None], labels=labels[None]))[0]
        both = together[row]
        if family in ("llama", "gpt2"):
            both = both[np.concatenate([np.ones(3, bool), shown])]
        np.testing.assert_allclose(both, alone, rtol=0, atol=1e-12)


def test_the_vocabulary_gives_the_first_rows():
    model = tiny.model()
    P = attach(model, PromptTuning(p=4, start="vocab")).adapters[0].arrays["embed.tokens.out:P"]
    table = model.params["embed.tokens.weight"]
    assert all((table == row).all(axis=1).any() for row in P)


def test_the_position_table_must_hold_the_prompt_too():
    with pytest.raises(Bad, match="40"):
        attach(tiny.model("gpt2"), PromptTuning(p=36)).logits(batch(input_ids=IDS[None]))


def test_no_virtual_tokens_are_refused():
    with pytest.raises(Bad, match="p must be at least 1, found 0"):
        PromptTuning(p=0)
