import numpy as np
import pytest
import reference

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.prompt.mpt import MPT
from minipeft.methods.prompt.prompt_tuning import PromptTuning
from minipeft.model.batch import batch

IDS = np.array([5, 9, 3, 17, 30])


def test_rows_stand_before_the_text():
    adapted = attach(tiny.model(), PromptTuning(p=3))
    P = adapted.adapters[0].arrays["embed.tokens.out:P"]
    want = reference.llama(adapted.model, IDS, embedded=lambda h: np.concatenate([P, h]))
    np.testing.assert_allclose(adapted.logits(batch(input_ids=IDS[None]))[0], want, rtol=0, atol=1e-12)


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


def test_given_positions_and_types_are_ignored_where_asked():
    """With ignores="positions" it is as if none had been given; with "positions and types" the types too, under any batch."""
    model = tiny.model("bert")
    ids = dict(input_ids=IDS[None])
    positions = dict(position_ids=np.array([[0, 0, 1, 5, 2]]))
    types = dict(token_type_ids=np.array([[0, 1, 1, 0, 1]]))

    def logits(ignores, **given):
        return attach(model, PromptTuning(p=2, ignores=ignores)).logits(batch(**ids, **given))

    assert (logits("positions", **positions, **types) == logits("nothing", **types)).all()
    assert (logits("positions and types", **positions, **types) == logits("nothing")).all()
    assert abs(logits("nothing", **positions, **types) - logits("nothing", **types)).max() > 1e-3
    assert abs(logits("positions", **types) - logits("nothing")).max() > 1e-3
    with pytest.raises(Bad, match="ignores must be one of nothing, positions, positions and types, found 'all'"):
        PromptTuning(ignores="all")


def test_a_text_gives_the_rows_over_and_over():
    model = tiny.model()
    table = model.params["embed.tokens.weight"]
    for p, rows in [(2, [7, 3]), (3, [7, 3, 9]), (7, [7, 3, 9, 7, 3, 9, 7])]:
        P = attach(model, PromptTuning(p=p, start="text", text=(7, 3, 9))).adapters[0].arrays["embed.tokens.out:P"]
        assert (table[rows] == P).all()
    for ids in [(3, 50), (-1,)]:
        with pytest.raises(Bad, match=f"text must lie in 0 … 49, found {ids[-1]}"):
            attach(model, PromptTuning(start="text", text=ids))
    for wrong in [dict(start="text"), dict(text=(3,)), dict(start="vocab", text=(3,))]:
        with pytest.raises(Bad, match="start='text', and no other, needs text, found"):
            PromptTuning(**wrong)


@pytest.mark.hf
@pytest.mark.parametrize("stacks", [1, 2])
@pytest.mark.parametrize("p", [2, 3, 8])
def test_the_start_from_a_text_is_that_of_peft(p, stacks, monkeypatch):
    """For two stacks PEFT goes on in the text after p tokens, which nothing reads but in MPT."""
    import torch
    import transformers
    from peft import PromptTuningConfig
    from peft.tuners.prompt_tuning import PromptEmbedding

    model = tiny.model()
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: lambda text: {"input_ids": [7, 3, 9]}
    )
    config = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=p, num_transformer_submodules=stacks, token_dim=24, prompt_tuning_init="TEXT",
        prompt_tuning_init_text="any", tokenizer_name_or_path="any",
    )  # fmt: skip
    table = torch.nn.Embedding.from_pretrained(torch.tensor(model.params["embed.tokens.weight"]))
    want = PromptEmbedding(config, table).embedding.weight
    mine = attach(model, PromptTuning(p=p, start="text", text=(7, 3, 9))).adapters[0].arrays["embed.tokens.out:P"]
    both = attach(model, MPT(p=p * stacks, start="text", text=(7, 3, 9))).adapters[0].arrays[":P"]
    np.testing.assert_array_equal(mine.astype(np.float32), want.detach().numpy()[:p])
    np.testing.assert_array_equal(both.astype(np.float32), want.detach().numpy())
