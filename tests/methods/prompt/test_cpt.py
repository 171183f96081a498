import sys
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.conformance import tiny
from minipeft.errors import Bad, Unfit
from minipeft.methods.prompt.cpt import CPT, counted
from minipeft.model.batch import batch
from minipeft.train import SGD, AdamW, fit

TESTS = Path(__file__).parents[2]
TOKENS, TYPES = (5, 9, 3, 17, 30, 8, 11, 4, 2), (4, 1, 2, 3, 4, 6, 8, 8, 0)
MOST = (24 / 2048) ** 0.5  # how far a row may go where ε is 1


def P(adapted):
    return adapted.adapters[0].arrays["embed.tokens.out:P"]


def test_it_begins_as_the_base_reading_the_context():
    model = tiny.model()
    adapted = attach(model, CPT(tokens=TOKENS, types=TYPES))
    assert (P(adapted) == model.params["embed.tokens.weight"][list(TOKENS)]).all()
    given = tiny.example(model, padding="none")
    read = np.concatenate([np.tile(TOKENS, (3, 1)), given.input_ids], axis=1)
    np.testing.assert_allclose(adapted.logits(given), Adapted(model).logits(batch(input_ids=read)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_loss_counts_labels_of_the_context_too(gamma, padding):
    """The text's count 1, those of type 8 γ, the one of type 4 that has something before it γ²; the first token is predicted by none."""
    model = tiny.model()
    adapted = attach(model, CPT(tokens=TOKENS, types=TYPES, gamma=gamma))
    given = tiny.example(model, padding=padding)
    logits, p = adapted.logits(given), len(TOKENS)
    weights = {4: gamma**2, 6: gamma, 7: gamma}
    total, n = 0.0, 0
    for row in range(3):
        for t in range(1, p + given.labels.shape[1]):
            label = given.labels[row, t - p] if t >= p else TOKENS[t] if t in weights else -100
            if label != -100:
                x = logits[row, t - 1]
                total += weights.get(t, 1.0) * (np.log(np.exp(x - x.max()).sum()) + x.max() - x[label])
                n += 1
    np.testing.assert_allclose(adapted.loss(None, given), total / n, rtol=1e-12)


def test_a_type_of_the_first_token_alone_has_no_rank():
    assert counted((3, 7, 8), (8, 1, 4), 0.5)[1][2] == 0.5


@pytest.mark.parametrize("optimiser", [SGD(lr=50.0), AdamW(lr=0.1, weight_decay=0.1)])
def test_rows_stay_in_their_balls(optimiser):
    """Formats and inputs each at the end of their own, to rounding; labels and what has no type do not move at all."""
    model = tiny.model()
    start = attach(model, CPT(tokens=TOKENS, types=TYPES, eps=2.0, eps_format=0.5))
    for steps in (1, 5):
        moved = P(fit(start, [tiny.example(model)], steps=steps, optimiser=optimiser).adapted)
        far = np.sqrt(((moved - P(start)) ** 2).sum(axis=1)) / MOST
        kinds = np.array(TYPES) % 4
        assert (moved[kinds == 0] == P(start)[kinds == 0]).all()
        for kind, most in [(1, 0.5), (3, 0.5), (2, 2.0)]:
            np.testing.assert_allclose(far[kinds == kind], most, rtol=1e-12)


def test_within_its_ball_a_row_moves_freely():
    model = tiny.model()
    free = attach(model, CPT(tokens=TOKENS, types=TYPES, eps=1e3, eps_format=1e3))
    given = tiny.example(model)
    _, grads = free.value_and_grad(given)
    moved = P(fit(free, [given], steps=1, optimiser=SGD(lr=0.1)).adapted)
    kept = (np.array(TYPES) % 4 > 0)[:, None]
    np.testing.assert_allclose(moved, P(free) - 0.1 * grads["default/embed.tokens.out:P"] * kept, rtol=0, atol=1e-15)


def test_what_does_not_fit_is_refused():
    for fields, word in [
        (dict(tokens=(3, 4), types=(1,)), "types must be one for each of 2 tokens, found 1"),
        (dict(tokens=(3,), types=(-1,)), "types must be at least 0"),
        (dict(eps=-1.0), "eps must be at least 0"),
    ]:
        with pytest.raises(Bad, match=word):
            CPT(**fields)
    with pytest.raises(Bad, match="tokens must name at least one token id"):
        attach(tiny.model(), CPT())
    with pytest.raises(Bad, match="tokens must lie in 0 … 49, found 50"):
        attach(tiny.model(), CPT(tokens=(3, 50), types=(1, 4)))
    for family in ("bert", "t5"):
        with pytest.raises(Unfit, match="expected a causal language model"):
            attach(tiny.model(family), CPT(tokens=(3,), types=(1,)))


@pytest.mark.hf
@pytest.mark.parametrize("decay", [False, True])
def test_training_is_that_of_peft(decay):
    """Loss and context after each of six steps, in which rows leave their balls and come back."""
    import peft
    import torch
    import transformers
    from peft.tuners.cpt import model as theirs

    sys.path.insert(0, str(TESTS / "record"))
    import float64

    folder = TESTS / "data" / "peft" / "llama" / "base"
    config = peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=list(TOKENS), cpt_mask=[1] * 9, cpt_tokens_type_mask=list(TYPES),
        opt_projection_epsilon=4.0, opt_projection_format_epsilon=1.0, opt_loss_decay_factor=0.6,
        opt_weighted_loss_type="decay" if decay else "none",
    )  # fmt: skip
    method = CPT(tokens=TOKENS, types=TYPES, eps=4.0, eps_format=1.0, gamma=0.6 if decay else 1.0)
    ids = np.random.default_rng(0).integers(3, 43, (2, 6))
    mine = attach(load(folder, np.float64), method)
    given = batch(input_ids=ids, labels=ids)
    torch.set_default_dtype(torch.float64)
    try:
        with float64.as_float64(theirs):
            base = transformers.LlamaForCausalLM.from_pretrained(
                folder, dtype=torch.float64, attn_implementation="eager"
            )
            model = peft.get_peft_model(base, config).double()
            encoder = model.prompt_encoder["default"]
            optimiser = torch.optim.SGD(encoder.parameters(), lr=0.5)
            out = 0
            for _ in range(6):
                optimiser.zero_grad()
                loss = model(
                    input_ids=torch.tensor(ids), labels=torch.tensor(ids), attention_mask=torch.ones(2, 6)
                ).loss
                loss.backward()
                optimiser.step()
                norm = encoder.delta_embedding.weight.norm(dim=1)
                out += int((norm > encoder.get_epsilon()).sum())
                want = encoder(torch.arange(9)).detach().numpy()
                trained = fit(mine, [given], steps=1, optimiser=SGD(lr=0.5))
                mine = trained.adapted
                np.testing.assert_allclose(trained.losses[0], loss.item(), rtol=1e-11)
                np.testing.assert_allclose(P(mine), want, rtol=0, atol=1e-11)
            assert out > 5
    finally:
        torch.set_default_dtype(torch.float32)
        sys.path.remove(str(TESTS / "record"))
