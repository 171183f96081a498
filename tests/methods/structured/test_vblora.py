"""Factors put together of vectors from a bank."""

import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import weight_of
from minipeft.methods.structured.vblora import VBLoRA

SIZES = dict(r=2, num_vectors=6, vector_length=4)


def drawn(method, out, in_, seed=0, moved=0.0):
    rng = np.random.default_rng(seed)
    return one_part.arrays(method, one_part.site(np.zeros((out, in_))), rng, moved=moved)


def factors(method, a, out, in_):
    (term,) = method.change(**a).terms
    assert term.B.shape == (out, method.r) and term.A.shape == (method.r, in_) and term.s == 1
    return term.B, term.A


def test_with_one_vector_each_piece_is_a_vector_of_the_bank():
    """Rows of A and columns of B, piece by piece."""
    method = VBLoRA(**SIZES, topk=1)
    a = drawn(method, 8, 12, moved=1.0)
    B, A = factors(method, a, 8, 12)
    for k in range(2):
        for n in range(3):
            np.testing.assert_array_equal(A[k, 4 * n : 4 * n + 4], a["bank"][a["logits_A"][k, n].argmax()])
        for n in range(2):
            np.testing.assert_array_equal(B[4 * n : 4 * n + 4, k], a["bank"][a["logits_B"][n, k].argmax()])


def test_the_shares_are_those_of_the_largest_logits_alone():
    bank, z = np.eye(3, 4), np.array([[[0.0, np.log(3.0), -1.0]]])  # of 1 : 3 : 1/e the first two
    method = VBLoRA(r=1, num_vectors=3, vector_length=4)
    B, A = factors(method, dict(bank=bank, logits_A=z, logits_B=z), 4, 4)
    np.testing.assert_allclose(A, [[0.25, 0.75, 0, 0]], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(B, A.T)


def test_what_is_not_chosen_has_no_gradient():
    rng, method = np.random.default_rng(0), VBLoRA(**SIZES, topk=3)
    W, x, c = (rng.standard_normal(s) for s in ((8, 12), (5, 12), (5, 8)))
    a = drawn(method, 8, 12, moved=1.0)
    _, grads = one_part.forward_and_grads(method, a, {}, x, c, W)
    for name in ("logits_A", "logits_B"):
        least = np.sort(a[name])[..., -3, None]
        assert ((grads[name] != 0) == (a[name] >= least)).all()
        np.testing.assert_allclose(grads[name].sum(axis=-1), 0, rtol=0, atol=1e-12 * abs(grads[name]).max())


def test_what_was_chosen_stands_for_the_logits():
    """The same weight; and a last share that rounding made negative is a small number, not NaN."""
    method, kept = VBLoRA(**SIZES, topk=3), VBLoRA(**SIZES, topk=3, only_topk=True)
    a, own = drawn(method, 8, 12, moved=1.0), {}
    for name in "AB":
        z = a[f"logits_{name}"]
        own[f"chosen_{name}"] = T = np.argsort(-z)[..., :3]
        e = np.exp(np.take_along_axis(z, T, axis=-1))
        own[f"shares_{name}"] = (e / e.sum(axis=-1, keepdims=True))[..., :2]
    W = np.random.default_rng(1).standard_normal((8, 12))
    want, got = weight_of(method, W, a), weight_of(kept, W, dict(bank=a["bank"], **own))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)
    own["shares_A"] = own["shares_A"] * 0 + np.array([1.0, 2.0**-24])
    assert np.isfinite(weight_of(kept, W, dict(bank=a["bank"], **own))).all()


def test_one_that_was_chosen_counts_whole():
    method = VBLoRA(**SIZES, topk=1, only_topk=True)
    a = drawn(method, 8, 12, moved=1.0)
    assert a["shares_A"].shape == (2, 3, 0) and a["shares_B"].shape == (2, 2, 0)
    B, A = factors(method, a, 8, 12)
    np.testing.assert_array_equal(A.reshape(2, 3, 4), a["bank"][a["chosen_A"][..., 0]])
    np.testing.assert_array_equal(B.T.reshape(2, 2, 4), a["bank"][a["chosen_B"][..., 0].T])


def test_all_sites_share_the_bank_and_nothing_is_the_base_at_first():
    model = tiny.model()
    adapter = attach(model, VBLoRA(**SIZES), targets="attn.q.weight attn.v.weight").adapters[0]
    assert [k for k in adapter.arrays if k.endswith("bank")] == [":bank"] and ":bank" in adapter.trained
    assert abs(adapter.arrays[":bank"]).max() <= 0.02 and not VBLoRA.identity
    z = np.concatenate([a.ravel() for k, a in adapter.arrays.items() if "logits" in k])
    assert 0.09 < z.std() < 0.11
    kept = attach(model, VBLoRA(**SIZES, only_topk=True), targets="attn.q.weight").adapters[0]
    assert kept.trained == {":bank"}
    for name, a in kept.arrays.items():
        if "chosen" in name:
            assert (np.diff(np.sort(a)) > 0).all() and a.min() >= 0 and a.max() < 6
        elif "shares" in name:
            assert (a > 0).all() and (a.sum(axis=-1) < 1).all()


def test_what_does_not_fit_is_said():
    with pytest.raises(Bad, match=r"vblora: vector_length must divide 8 and 12, both widths, found 3, at"):
        drawn(VBLoRA(r=2, num_vectors=6, vector_length=3), 8, 12)
    with pytest.raises(Bad, match="topk must be at most num_vectors = 6, found 7"):
        VBLoRA(**SIZES, topk=7)


@pytest.mark.hf
@pytest.mark.parametrize(("out", "in_"), [(8, 12), (20, 4)])
@pytest.mark.parametrize("topk", [1, 2, 5])
@pytest.mark.parametrize("r", [1, 3, 30])
def test_output_gradients_and_merged_weight_are_those_of_peft(out, in_, topk, r):
    import peft

    rng = np.random.default_rng(0)
    W, b, x, c = (rng.standard_normal(s) for s in ((out, in_), (out,), (2, 3, in_), (2, 3, out)))
    options = dict(r=r, num_vectors=5, vector_length=4, topk=topk)
    config = peft.VBLoRAConfig(**options, target_modules=["lin"], init_vector_bank_bound=1.0)
    theirs = one_part.Peft(config, W, b, x, c)
    method = VBLoRA(**options)
    keys = dict(logits_A="vblora_logits_A", logits_B="vblora_logits_B", bank="vblora_vector_bank")
    theta = {k: theirs.params[v] for k, v in keys.items()}
    y, grads = one_part.forward_and_grads(method, theta, {}, x, c, W, b)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    for ours, name in keys.items():
        np.testing.assert_allclose(grads[ours], theirs.grads[name], rtol=0, atol=1e-13 * abs(theirs.grads[name]).max())
    np.testing.assert_allclose(weight_of(method, W, theta), theirs.merged(), rtol=0, atol=1e-13 * abs(W).max() * r)


@pytest.mark.hf
@pytest.mark.parametrize("number", [6, 256])
def test_a_file_of_what_was_chosen_is_read(number, tmp_path):
    """Indices are of 8 bits, or of 16 from 256 vectors on; the shares are PEFT's in float32."""
    from pathlib import Path

    import peft
    import torch
    import transformers

    from minipeft.checkpoints import load
    from minipeft.interop.peft.reading import load_peft, read_adapter_tensors
    from minipeft.interop.peft.writing import save_peft
    from minipeft.model.batch import batch

    base, ids = Path(__file__).parents[2] / "data" / "peft" / "llama" / "base", np.array([[5, 9, 3, 17]])
    torch.manual_seed(0)
    config = peft.VBLoRAConfig(
        r=2, num_vectors=number, vector_length=12, target_modules=["q_proj", "v_proj"], save_only_topk_weights=True,
        init_vector_bank_bound=0.5,
    )  # fmt: skip
    model = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(base), config).eval()
    model.save_pretrained(tmp_path)
    want = model(torch.tensor(ids)).logits.detach().numpy()
    adapted = load_peft(load(base, np.float64), tmp_path)
    np.testing.assert_allclose(adapted.logits(batch(input_ids=ids)), want, rtol=0, atol=1e-5 * abs(want).max())
    assert abs(want - load_peft_base(base, ids)).max() > 0.01
    save_peft(adapted, tmp_path / "again")
    was, now = read_adapter_tensors(tmp_path), read_adapter_tensors(tmp_path / "again")
    assert {k: (a.dtype.kind, a.tolist()) for k, a in was.items()} == {
        k: (a.dtype.kind, a.tolist()) for k, a in now.items()
    }
    assert {a.dtype for a in was.values() if a.dtype.kind != "f"} == {np.dtype(np.uint8 if number < 256 else np.int16)}


def load_peft_base(base, ids):
    from minipeft.adapted import Adapted
    from minipeft.checkpoints import load
    from minipeft.model.batch import batch

    return Adapted(load(base, np.float64)).logits(batch(input_ids=ids))
