"""Methods on ViT's patches: to us a linear, in files a convolution; what PEFT's layers have no place for is one clear line."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import load, save_model
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.registry import specs
from minipeft.interop.peft.writing import save_peft
from minipeft.merging import merge
from minipeft.method import METHODS, TAKES, is_weight, load_methods
from minipeft.methods.lowrank.dora import DoRA
from minipeft.methods.scaling.ia3 import IA3
from minipeft.methods.structured.loha import LoHa
from minipeft.methods.structured.lokr import LoKr
from minipeft.model.parts import PATCHES
from minipeft.settings import small
from minipeft.targets import sites

ROOT = Path(__file__).parents[2] / "data" / "peft"
MODULE = "embeddings.patch_embeddings.projection"
MODEL = tiny.model("vit")
load_methods()
FIT = sorted(
    n
    for n, cls in METHODS.items()
    if cls.__module__.startswith("minipeft.") and is_weight(cls) and TAKES.get(cls.takes, bool)(sites(MODEL)[PATCHES])
)


def moved(adapted, seed=0):
    rng = np.random.default_rng(seed)
    return adapted.replace({k: v + 0.2 * rng.standard_normal(v.shape) for k, v in adapted.theta.items()})


def on_patches(method):
    return moved(attach(MODEL, method, targets=MODULE, data=[tiny.example(MODEL)]))


def adapted_by(name):
    own = dict(trainable_tokens=dict(tokens=(1, 5)), qa_lora=dict(pool="peft")).get(name, {})
    return on_patches(dataclasses.replace(small(METHODS[name], MODEL.arch), **own))


@pytest.mark.parametrize("name", FIT)
def test_it_merges(name):
    adapted, given = adapted_by(name), tiny.example(MODEL)
    want = adapted.logits(given)
    assert abs(want - Adapted(MODEL).logits(given)).max() > 1e-6
    np.testing.assert_allclose(Adapted(merge(adapted)).logits(given), want, rtol=0, atol=1e-11 * abs(want).max())


def test_it_merges_into_a_kernel(tmp_path):
    base = ROOT / "vit-channels"
    merged = merge(load_peft(load(base / "base"), base / "lora-patches" / "adapter"))
    save_model(merged, tmp_path)
    a = read_tensors(tmp_path / "model.safetensors")[f"vit.{MODULE}.weight"]
    np.testing.assert_array_equal(a, merged.params[PATCHES].reshape(20, 6, 3, 3))
    assert load(tmp_path).digest() == merged.digest()


@pytest.mark.parametrize("name", [n for n in specs() if n in FIT])
def test_it_is_written_and_read_or_refused_in_one_line(name, tmp_path):
    adapted = adapted_by(name)
    try:
        save_peft(adapted, tmp_path)
    except Bad as why:
        assert "\n" not in str(why) and not list(tmp_path.iterdir())
        assert isinstance(specs()[name].patches, str) and "convolution" in str(why)
        return
    again, given = load_peft(MODEL, tmp_path), tiny.example(MODEL)
    want = adapted.logits(given)
    np.testing.assert_allclose(again.logits(given), want, rtol=0, atol=1e-13 * abs(want).max())


@pytest.mark.parametrize("tuner", ["oft", "vera", "miss-mini"])
def test_a_file_of_a_tuner_that_has_none_there(tuner, tmp_path):
    shutil.copytree(ROOT / "vit" / tuner / "adapter", tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    q = "layers.0.attention.q_proj"
    write_tensors(file, {k.replace(q, MODULE): a for k, a in read_tensors(file).items()})
    with pytest.raises(Bad, match=rf"[A-Z]+ at {PATCHES}, which is a convolution there: PEFT"):
        load_peft(load(ROOT / "vit" / "base"), tmp_path / "a")


def test_kernels_of_another_shape(tmp_path):
    shutil.copytree(ROOT / "vit-channels" / "lora-patches" / "adapter", tmp_path / "a")
    file, base = tmp_path / "a" / "adapter_model.safetensors", load(ROOT / "vit-channels" / "base")
    tensors = read_tensors(file)
    key = next(k for k in tensors if k.endswith(f"{MODULE}.lora_A.weight"))
    for shape, says in (
        ((2, 54, 1, 1), r"\(n, n, 3, 3\), found \(2, 54, 1, 1\)"),
        ((2, 54), r"\(n, n, 3, 3\), found \(2, 54\)"),
        ((1, 12, 3, 3), r"\(2, 54\), found \(1, 108\)"),
    ):
        write_tensors(file, tensors | {key: tensors[key].reshape(shape)})
        with pytest.raises(Bad, match=rf"expected shape {says}"):
            load_peft(base, tmp_path / "a")


@pytest.mark.parametrize(("method", "says"), [
    (DoRA(r=2, start="svd"), "LORA at embed.patch.weight.*from drawn factors"),
])  # fmt: skip
def test_what_peft_has_no_place_for(method, says, tmp_path):
    with pytest.raises(Bad, match=says):
        save_peft(on_patches(method), tmp_path)


def test_scales_of_inputs_are_of_channels():
    adapted = on_patches(IA3(inputs=PATCHES))
    (l,) = adapted.adapters[0].arrays.values()
    assert l.shape == (3,)
    np.testing.assert_array_equal(
        merge(adapted).params[PATCHES].reshape(24, 3, 16), MODEL.params[PATCHES].reshape(24, 3, 16) * l[:, None]
    )


@pytest.mark.parametrize(
    ("method", "shapes"),
    [
        (LoHa(r=2, kernel="tucker"), dict(X1=(24, 2), X2=(24, 2), U1=(2, 3), U2=(2, 3), T1=(2, 2, 16), T2=(2, 2, 16))),
        (LoKr(r=2, kernel="tucker", factor=3), dict(C=(3, 3), B=(8, 2), U=(2, 1), T=(2, 2, 16))),
        (LoKr(r=2), dict(C=(4, 1), B=(6, 2), A=(2, 48))),
        (LoKr(r=3, kernel="tucker"), dict(C=(4, 1), D=(6, 48))),
    ],
)
def test_a_tucker_decomposition(method, shapes):
    adapted = on_patches(method)
    own = {k.rpartition(":")[2]: a for k, a in adapted.adapters[0].arrays.items()}
    assert {k: a.shape for k, a in own.items()} == shapes

    def kernel(T, X, U):
        return np.einsum("ijp,oi,jc->ocp", T, X, U).reshape(len(X), -1)

    if method.name == "loha":
        change = kernel(own["T1"], own["X1"], own["U1"]) * kernel(own["T2"], own["X2"], own["U2"])
    else:
        D = own.get("D")
        D = (kernel(own["T"], own["B"], own["U"]) if "T" in own else own["B"] @ own["A"]) if D is None else D
        change = np.kron(own["C"], D)
    want = MODEL.params[PATCHES] + method.alpha / method.r * change
    np.testing.assert_allclose(merge(adapted).params[PATCHES], want, rtol=0, atol=1e-13 * abs(want).max())
