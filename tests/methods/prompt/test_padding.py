import dataclasses

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.methods.prompt.prefix_tuning import PrefixTuning
from minipeft.methods.prompt.prompt_tuning import PromptTuning
from minipeft.model.batch import batch

CASES = [*((f, "right") for f in ("llama", "gpt2", "bert", "t5")), ("llama", "left"), ("gpt2", "left")]


@pytest.mark.parametrize("method", [PromptTuning(p=3), PrefixTuning(p=3)], ids=lambda m: m.name)
@pytest.mark.parametrize("family, side", CASES)
def test_a_padded_row_has_the_logits_it_has_alone(family, side, method):
    model = tiny.model(family)
    adapted, given = attach(model, method), tiny.example(model, padding=side)
    if side == "left":  # positions follow the mask
        given = dataclasses.replace(given, position_ids=np.maximum(given.attention_mask.cumsum(axis=1) - 1, 0))
    together = adapted.logits(given)
    for row in range(3):
        shown = given.attention_mask[row] == 1
        labels = given.labels[row][shown] if given.labels.ndim == 2 and family != "t5" else given.labels[row]
        alone = adapted.logits(batch(input_ids=given.input_ids[row][shown][None], labels=labels[None]))[0]
        both = together[row]
        if family in ("llama", "gpt2"):  # rows of the text, after those of a prompt
            both = both[np.concatenate([np.ones(len(both) - len(shown), bool), shown])]
        np.testing.assert_allclose(both, alone, rtol=0, atol=1e-12)
