"""A few numbers along the base's own directions."""

import numpy as np
import one_part
import pytest

from minipeft.attaching import attach
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.method import weight_of
from minipeft.methods.structured.tinylora import TinyLoRA

SHAPES = [(20, 12), (9, 14), (3, 3)]


def drawn(method, W, seed=0, moved=0.0):
    return one_part.arrays(method, one_part.site(W), np.random.default_rng(seed), moved=moved)


@pytest.mark.parametrize(("out", "in_"), SHAPES)
@pytest.mark.parametrize("r", [1, 2, 30])
def test_the_change_lies_among_the_base_s_largest_directions(out, in_, r):
    """U_rᵀ ΔW V_r is √Σ R √Σ, and nothing of ΔW is elsewhere."""
    W = np.random.default_rng(3).standard_normal((out, in_))
    a, k = drawn(TinyLoRA(r=r, u=6), W, moved=0.5), min(r, out, in_)
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    np.testing.assert_allclose(a["B"] @ a["A"], (U[:, :k] * S[:k]) @ Vt[:k], rtol=0, atol=1e-13 * S[0])
    np.testing.assert_allclose(np.linalg.norm(a["A"], axis=1), np.sqrt(S[:k]), rtol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(a["B"], axis=0), np.sqrt(S[:k]), rtol=1e-13)
    assert a["P"].shape == (6, k, k) and a["v"].shape == (1, 6) and a["group"] == [0]
    change = weight_of(TinyLoRA(r=r, u=6), np.zeros_like(W), a)
    inside = U[:, :k] @ (U[:, :k].T @ change @ Vt[:k].T) @ Vt[:k]
    np.testing.assert_allclose(inside, change, rtol=0, atol=1e-13 * abs(change).max())
    R = sum(v * P for v, P in zip(a["v"][0], a["P"], strict=True))
    np.testing.assert_allclose(change, a["B"] @ R @ a["A"], rtol=0, atol=1e-13 * abs(change).max())


@pytest.mark.parametrize(
    ("tying", "sizes"),
    [(0.0, [1] * 7), (0.34, [1, 1, 1, 1, 3]), (0.4, [1, 1, 1, 4]), (0.5, [1, 1, 1, 4]), (0.7, [3, 4]), (1.0, [7])],
)
def test_groups_are_of_equal_size_but_the_last(tying, sizes):
    """Of 7 matrices; 7 (1 − 0.5) = 3.5 is rounded to 4, the even number."""
    targets = ["attn.q.weight", "attn.v.weight", "mlp.up.weight", "layers.1.mlp.down.weight"]
    adapter = attach(tiny.model(), TinyLoRA(u=5, weight_tying=tying), targets=targets).adapters[0]
    numbers = [int(adapter.arrays[f"{site}:group"][0]) for site in adapter.at]
    assert numbers == [g for g, n in enumerate(sizes) for _ in range(n)]
    assert adapter.arrays[":v"].shape == (len(sizes), 5) and adapter.trained == {":v"}


def test_matrices_of_another_rank_count_among_the_others():
    targets, patterns = "attn.q.weight attn.v.weight", {"layers.0.attn.v.weight": dict(r=3)}
    adapter = attach(tiny.model(), TinyLoRA(u=5, weight_tying=0.5), targets=targets, patterns=patterns).adapters[0]
    assert [int(adapter.arrays[f"{site}:group"][0]) for site in adapter.at] == [0, 0, 1, 1]
    assert adapter.arrays[":v"].shape == (2, 5) and adapter.arrays["layers.0.attn.v.weight:P"].shape == (5, 3, 3)
    adapted = attach(tiny.model(), TinyLoRA(u=5, weight_tying=0.5), targets=targets, patterns=patterns)
    assert adapted.logits(tiny.example(adapted.model)).shape


def test_every_matrix_has_random_numbers_of_its_own_seed():
    adapter = attach(tiny.model(), TinyLoRA(r=4, u=50, seed=3), targets="attn.q.weight attn.v.weight").adapters[0]
    P = [adapter.arrays[f"{site}:P"] for site in adapter.at]
    assert all((P[0] != other).any() for other in P[1:])
    next_seed = attach(tiny.model(), TinyLoRA(r=4, u=50, seed=4), targets="attn.q.weight attn.v.weight").adapters[0]
    assert np.array_equal(next_seed.arrays["layers.0.attn.q.weight:P"], P[1])
    assert abs(np.std(P) - 0.5) < 0.02 and abs(np.mean(P)) < 0.04


def test_a_table_s_rows_are_those_of_its_weight_and_the_head_stays():
    model = tiny.model("gpt2")
    adapted = attach(model, TinyLoRA(u=5, start="uniform"), targets="embed.tokens.weight")
    own = adapted.adapters[0].grouped()
    assert 0 < abs(own[""]["v"]).max() <= 0.02 and not TinyLoRA(start="uniform").identity and TinyLoRA().identity
    W = model.params["embed.tokens.weight"]
    want = weight_of(TinyLoRA(u=5), W, own["embed.tokens.weight"] | own[""])
    ids = np.array([[3, 7, 3]])
    np.testing.assert_allclose(adapted.run().lookup("embed.tokens", ids), want[ids], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(adapted.run().param("head.weight"), W)


def test_a_file_s_vectors_have_numbers_from_0_on(tmp_path):
    model = tiny.model()
    adapted = attach(model, TinyLoRA(u=5, start="uniform"), targets="attn.q.weight attn.v.weight")
    save_peft(adapted, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = read_tensors(file)
    vectors = [tensors[f"base_model.tinylora_v.{g}"] for g in range(4)]
    np.testing.assert_array_equal(vectors, adapted.adapters[0].arrays[":v"])
    again = load_peft(model, tmp_path).adapters[0].arrays
    assert all(np.array_equal(a, again[k]) for k, a in adapted.adapters[0].arrays.items())
    for changed, says in (
        ({"base_model.tinylora_v.2": None}, r"unexpected key 'base_model\.tinylora_v\.3'"),
        ({"base_model.tinylora_v.3": None}, r"v: expected shape \(4, 5\), found \(3, 5\)"),
        ({"base_model.tinylora_v.4": vectors[0]}, r"v: expected shape \(4, 5\), found \(5, 5\)"),
        ({"base_model.tinylora_v.1": vectors[0][:3]}, r"unexpected key 'base_model\.tinylora_v\.1'"),
        ({"base_model.tinylora_v": vectors[0]}, r"unexpected key 'base_model\.tinylora_v'"),
        ({f"base_model.tinylora_v.{g}": None for g in range(4)}, r"lacks base_model\.tinylora_v"),
    ):
        write_tensors(file, {k: a for k, a in (tensors | changed).items() if a is not None})
        with pytest.raises(Bad, match=says):
            load_peft(model, tmp_path)


@pytest.mark.hf
@pytest.mark.parametrize(("out", "in_"), SHAPES)
@pytest.mark.parametrize(("r", "u", "seed"), [(2, 3, 42), (3, 7, 2**33), (30, 2, 0)])
@pytest.mark.parametrize("table", [False, True])
def test_output_gradient_and_merged_weight_are_those_of_peft(out, in_, r, u, seed, table):
    """With its own factors, which are of float32; ours span the same, and the random matrices are the same."""
    import peft

    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((out, in_)), None if table else rng.standard_normal(out)
    x = rng.integers(0, out, (2, 3)) if table else rng.standard_normal((2, 3, in_))
    c = rng.standard_normal((2, 3, in_ if table else out))
    config = peft.TinyLoraConfig(r=r, u=u, projection_seed=seed, target_modules=["lin"])
    theirs = one_part.Peft(config, W, b, x, c)
    method, name = TinyLoRA(r=r, u=u, seed=seed), "embed.tokens.weight" if table else "layers.0.attn.q.weight"
    made = one_part.arrays(method, one_part.site(W, "embedding" if table else "linear", name), rng)
    stored = {k: theirs.state[f"base_model.model.lin.tinylora_{k}.default"] for k in "ABP"}
    np.testing.assert_allclose(made["P"], stored["P"], rtol=2.0**-20, atol=2.0**-20)  # 8 ε, as torch's own normals
    part = stored["B"] @ stored["A"]
    np.testing.assert_allclose(made["B"] @ made["A"], part, rtol=0, atol=256 * 2.0**-24 * abs(W).max())
    (v,) = (a for k, a in theirs.model.named_parameters() if "tinylora_v" in k)
    theta = dict(v=v.detach().numpy()[None])
    rest = stored | dict(group=made["group"])
    y, grads = one_part.forward_and_grads(method, theta, rest, x, c, W, b, table=table)
    np.testing.assert_allclose(y, theirs.y, rtol=0, atol=1e-13 * abs(theirs.y).max())
    want = v.grad.numpy()
    np.testing.assert_allclose(grads["v"][0], want, rtol=0, atol=1e-12 * abs(want).max())
    merged = theirs.merged()
    np.testing.assert_allclose(weight_of(method, W, theta | rest), merged, rtol=0, atol=1e-13 * abs(merged).max())
