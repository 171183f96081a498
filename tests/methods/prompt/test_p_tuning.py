import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.methods.prompt.p_tuning import PTuning
from minipeft.methods.prompt.prompt_tuning import PromptTuning


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, Wx, Wh, bx, bh):
    """One direction of one layer, gate by gate."""
    h = c = np.zeros(Wh.shape[1])
    out = []
    for row in x:
        i, f, g, o = np.split(Wx @ row + bx + Wh @ h + bh, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.array(out)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_lstm_reads_both_ways(layers):
    method = PTuning(p=4, hidden=5, layers=layers)
    a = attach(tiny.model(), method).adapters[0].grouped()["embed.tokens.out"]
    x = a["E0"]
    for n in range(layers):
        weights = [a[f"{w}{n}"] for w in ("Wx", "Wh", "bx", "bh")]
        there, back = ([w[k] for w in weights] for k in (0, 1))
        x = np.concatenate([lstm(x, *there), lstm(x[::-1], *back)[::-1]], axis=1)
    want = np.maximum(x @ a["U1"].T + a["u1"], 0) @ a["U2"].T + a["u2"]
    np.testing.assert_allclose(method.prompt(None, **a), want, rtol=0, atol=1e-14)


def test_the_mlp_has_three_layers():
    method = PTuning(p=4, hidden=5, encoder="mlp")
    a = attach(tiny.model(), method).adapters[0].grouped()["embed.tokens.out"]
    x = np.maximum(a["W1"] @ a["E0"].T + a["b1"][:, None], 0)
    want = a["W3"] @ np.maximum(a["W2"] @ x + a["b2"][:, None], 0) + a["b3"][:, None]
    np.testing.assert_allclose(method.prompt(None, **a), want.T, rtol=0, atol=1e-14)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_the_prompt_is_all_that_remains(encoder):
    model = tiny.model("gpt2")
    given = tiny.example(model)
    adapted = attach(model, PTuning(p=4, hidden=5, encoder=encoder))
    P = adapted.adapters[0].method.prompt(None, **adapted.adapters[0].grouped()["embed.tokens.out"])
    plain = attach(model, PromptTuning(p=4))
    plain = plain.replace({next(iter(plain.theta)): P})
    np.testing.assert_array_equal(adapted.logits(given), plain.logits(given))


@pytest.mark.hf
@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_it_is_the_network_of_peft(encoder):
    import peft
    import torch
    from peft.tuners.p_tuning import PromptEncoder

    torch.manual_seed(0)
    options = dict(encoder_num_layers=2, encoder_dropout=0.0) if encoder == "lstm" else {}
    theirs = PromptEncoder(
        peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=24, encoder_reparameterization_type=encoder.upper(),
            encoder_hidden_size=5, num_transformer_submodules=1, **options,
        )
    ).double()  # fmt: skip
    state = {k: v.detach().numpy() for k, v in theirs.named_parameters()}
    arrays = {"E0": state["embedding.weight"]}
    if encoder == "mlp":
        for n, k in enumerate((0, 2, 4), 1):
            arrays |= {f"W{n}": state[f"mlp_head.{k}.weight"], f"b{n}": state[f"mlp_head.{k}.bias"]}
    else:
        for ours, name in (("Wx", "weight_ih"), ("Wh", "weight_hh"), ("bx", "bias_ih"), ("bh", "bias_hh")):
            for n in range(2):
                both = [state[f"lstm_head.{name}_l{n}{end}"] for end in ("", "_reverse")]
                arrays[f"{ours}{n}"] = np.stack(both)
        for n, k in enumerate((0, 2), 1):
            arrays |= {f"U{n}": state[f"mlp_head.{k}.weight"], f"u{n}": state[f"mlp_head.{k}.bias"]}
    got = PTuning(p=4, hidden=5, encoder=encoder).prompt(None, **arrays)
    want = theirs(torch.arange(4)[None])[0].detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_words_cannot_be_put_through_the_network():
    with pytest.raises(Bad, match="start must be 'normal', found 'vocab'"):
        PTuning(start="vocab")
