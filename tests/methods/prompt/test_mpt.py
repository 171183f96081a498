import dataclasses

import numpy as np
import pytest
import reference

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.prompt.mpt import MPT
from minipeft.methods.prompt.prompt_tuning import PromptTuning
from minipeft.model.batch import batch

IDS = np.array([[5, 9, 3, 17, 30], [8, 30, 4, 11, 2], [5, 9, 3, 17, 30]])
TASKS = np.array([2, 0, 1])


def moved(adapted, seed=0):
    rng = np.random.default_rng(seed)
    return adapted.replace({k: v + rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def arrays(adapted):
    return adapted.adapters[0].grouped()[""]


@pytest.mark.parametrize("r", [1, 2, 30])
def test_every_row_has_the_prompt_of_its_task(r):
    """Above the prompt's length and width r is only more than it takes: any matrix is of that rank."""
    adapted = moved(attach(tiny.model(), MPT(p=3, r=r, n_tasks=3)))
    a = arrays(adapted)
    assert [a[k].shape for k in "PUV"] == [(3, 24), (3, 3, r), (3, r, 24)]
    got = adapted.logits(batch(input_ids=IDS, task_ids=TASKS))
    for row, task, logits in zip(IDS, TASKS, got, strict=True):
        own = a["P"] * np.einsum("pr,rd->pd", a["U"][task], a["V"][task])
        want = reference.llama(adapted.model, row, embedded=lambda h, own=own: np.concatenate([own, h]))
        np.testing.assert_allclose(logits, want, rtol=0, atol=1e-12 * abs(own).max())


@pytest.mark.parametrize("targets", ["encoder.embed.tokens.out", MPT().targets])
def test_the_stacks_of_an_encoder_decoder_have_prompts_of_their_own(targets):
    """The first p rows are the encoder's; the labels of a prompt in the decoder do not count."""
    model = tiny.model("t5")
    adapted = moved(attach(model, MPT(p=2, r=2, n_tasks=3, targets=targets)))
    given = tiny.example(model, padding="right").having(task_ids=np.full(3, 1))
    a = arrays(adapted)
    own = a["P"] * (a["U"][1] @ a["V"][1])
    plain = attach(model, PromptTuning(p=2, targets=targets))
    n = len(targets.split())
    assert own.shape == (2 * n, 24)
    sites = ["encoder.embed.tokens.out", "embed.tokens.out"][:n]
    plain = plain.replace({f"default/{site}:P": own[2 * i : 2 * i + 2] for i, site in enumerate(sites)})
    assert adapted.logits(given).shape[1] == given.labels.shape[1] + 2 * (n - 1)
    np.testing.assert_allclose(adapted.logits(given), plain.logits(given), rtol=0, atol=1e-12 * abs(own).max())
    alone = dataclasses.replace(given, task_ids=None)
    np.testing.assert_allclose(adapted.loss(None, given), plain.loss(None, alone), rtol=1e-12)


def test_how_it_starts():
    model = tiny.model("t5")
    a = arrays(attach(model, MPT(p=40, r=9, n_tasks=5)))
    for name in "UV":  # the deviation of n numbers is off by a factor of 1 ± 5/√(2 n) at most
        assert abs(a[name].std() / 0.02 - 1) < 5 * (2 * a[name].size) ** -0.5
    text = arrays(attach(model, MPT(p=2, start="text", text=(7, 3, 9))))
    assert (text["P"] == model.params["embed.tokens.weight"][[7, 3, 9, 7]]).all()  # on from stack to stack


def test_tasks_are_asked_for():
    adapted = attach(tiny.model(), MPT(n_tasks=3))
    with pytest.raises(Bad, match="the batch has no task_ids"):
        adapted.logits(batch(input_ids=IDS))
    with pytest.raises(Bad, match="task_ids must lie in 0 … 2, found 0 … 3"):
        adapted.logits(batch(input_ids=IDS, task_ids=np.array([0, 3, 1])))
    single = attach(tiny.model(), MPT())
    assert (single.logits(batch(input_ids=IDS)) == single.logits(batch(input_ids=IDS, task_ids=0 * TASKS))).all()


def source():
    return moved(attach(tiny.model(), MPT(p=2, r=2, n_tasks=3))).adapters[0]


def test_it_may_start_from_a_trained_one():
    given = source()
    P, U, V = (given.arrays[f":{k}"] for k in "PUV")
    shared = arrays(attach(tiny.model(), MPT.from_source(given, r=3, n_tasks=4)))
    assert (shared["P"] == P).all() and [shared[k].shape for k in "UV"] == [(4, 2, 3), (4, 3, 24)]
    assert abs(shared["U"]).max() < 0.1
    mean = arrays(attach(tiny.model(), MPT.from_source(given, "mean")))
    assert (mean["P"] == P).all()
    np.testing.assert_allclose(mean["U"][0], (U[0] + U[1] + U[2]) / 3, rtol=1e-14)
    np.testing.assert_allclose(mean["V"][0], (V[0] + V[1] + V[2]) / 3, rtol=1e-14)
    one = arrays(attach(tiny.model(), MPT.from_source(given, 2)))
    assert all((x == y).all() for x, y in [(one["P"], P), (one["U"][0], U[2]), (one["V"][0], V[2])])
    for wrong in ("all", 3, -1):
        with pytest.raises(Bad, match="factors must be fresh, mean or a task in 0 … 2, found"):
            MPT.from_source(given, wrong)
    with pytest.raises(Bad, match=r"U is declared as \(2, 2, 2\) .* its start is \(1, 2, 2\)"):
        attach(tiny.model(), MPT.from_source(given, "mean", n_tasks=2))


@pytest.mark.hf
@pytest.mark.parametrize(
    ("factors", "theirs"),
    [("fresh", "ONLY_SOURCE_SHARED"), ("mean", "AVERAGE_SOURCE_TASKS"), (1, "EXACT_SOURCE_TASK")],
)
def test_starts_from_a_trained_one_are_those_of_peft(factors, theirs, tmp_path):
    import torch
    from peft.tuners.multitask_prompt_tuning.config import MultitaskPromptTuningConfig
    from peft.tuners.multitask_prompt_tuning.model import MultitaskPromptEmbedding
    from safetensors.torch import save_file

    given = source()
    names = dict(P="prompt_embeddings", U="prefix_task_cols", V="prefix_task_rows")
    tensors = {n: torch.tensor(given.arrays[f":{k}"]) for k, n in names.items()}
    save_file(tensors, tmp_path / "source.safetensors")
    config = MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, num_ranks=2, num_tasks=1, token_dim=24, prompt_tuning_init=theirs,
        num_transformer_submodules=1, prompt_tuning_init_task=1,
        prompt_tuning_init_state_dict_path=str(tmp_path / "source.safetensors"),
    )  # fmt: skip
    torch.set_default_dtype(torch.float64)
    try:
        made = MultitaskPromptEmbedding(config, torch.nn.Embedding(5, 24))
    finally:
        torch.set_default_dtype(torch.float32)
    mine = arrays(attach(Adapted(tiny.model()), MPT.from_source(given, factors)))
    np.testing.assert_allclose(mine["P"], made.embedding.weight.detach(), rtol=0, atol=0)
    if factors != "fresh":
        np.testing.assert_allclose(mine["U"], made.prefix_task_cols.detach(), rtol=1e-15)
        np.testing.assert_allclose(mine["V"], made.prefix_task_rows.detach(), rtol=1e-15)
