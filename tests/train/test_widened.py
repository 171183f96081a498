"""What is held in fewer bits is an array a matrix at a time, forward and backward."""

import dataclasses

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.conformance import tiny
from minipeft.engine.backend import peak_memory
from minipeft.engine.mapped import Mapped
from minipeft.methods.lowrank.lora import LoRA
from minipeft.model.base import Model, converted
from minipeft.model.parts import shapes
from minipeft.quantize import quantize

ARCH = dataclasses.replace(tiny.ARCHS["llama"], d=64, heads=4, kv_heads=4, ff=256)
LAYER, LARGEST = 4 * (4 * 64 * 64 + 3 * 64 * 256), 4 * 64 * 256  # bytes in float32: of a layer's matrices, of one


def held(name, W, how):
    matrix = W.ndim == 2 and ".layers." in f".{name}"
    if how == "float32":
        return W
    if how == "mapped":
        return Mapped(W, name, kept="bfloat16" if matrix else None)
    if how == "bfloat16":
        return converted(name, W, "bfloat16")
    return quantize(W, double=how == "nf4-double", code="int8" if how == "int8" else "nf4") if matrix else W


def most(layers, how, recompute):
    """The most bytes at once in a step, the base left out."""
    arch, rng = dataclasses.replace(ARCH, layers=layers), np.random.default_rng(0)
    params = {k: rng.standard_normal(s, np.float32) for k, s in shapes(arch).items()}
    adapted = attach(Model(arch, {k: held(k, W, how) for k, W in params.items()}), LoRA(r=1, targets="*.q.weight"))
    batch = tiny.example(adapted.model, rows=1, t=2)
    adapted.value_and_grad(batch, recompute=recompute)
    with peak_memory() as found:
        adapted.value_and_grad(batch, recompute=recompute)
    return found[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("how", ["bfloat16", "mapped", "nf4", "nf4-double", "int8"])
def test_one_matrix_is_wide_at_a_time(how, recompute):
    plain, (two, six) = most(6, "float32", recompute), (most(n, how, recompute) for n in (2, 6))
    grows = plain - most(2, "float32", recompute)
    assert six - two < grows + LAYER / 8  # what tokens leave on the tape of four layers, and no matrix
    assert six < plain + 4 * LARGEST  # with what is looked up and rounded on the way
