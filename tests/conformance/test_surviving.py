"""Small errors in a method's own code: which there are, that recorded cases tell them, and that what is left is explained."""

from dataclasses import dataclass

import numpy as np
import pytest

from minipeft.conformance import cases as files
from minipeft.conformance.mutants import surviving
from minipeft.conformance.mutants.altering import switchboard
from minipeft.conformance.mutants.surviving import Survey, survey
from minipeft.declare import Method, trained
from minipeft.engine import ops
from minipeft.method import METHODS, load_methods

load_methods()
SHIPPED = sorted(files.methods_in())


@pytest.mark.slow
@pytest.mark.parametrize("method", SHIPPED)
def test_every_small_error_is_told_or_explained(method):
    found = survey(METHODS[method])
    assert not found.faults and found.killed


def halved(x):
    return x / 2


@dataclass(frozen=True)
class Sum(Method, register=False):
    """What it computes is all that alterations may be of: sums, products, constants, what it calls, what is never run."""

    a = trained("out", "in")
    b = trained("out", "in")

    def change(self, *, a, b):
        return halved(1.5 * a) - b if a.shape else np.tanh(a)


def altered(cls, name, *, met=False, **arrays):
    """What the change is with the alteration of this name; or the names of all that met something."""
    with switchboard(cls) as board:
        board.watching = True
        cls().change(**arrays)
        board.watching = False
        names = {board.named(it): it for it in board.met}
        if met:
            return set(names), set(board.idle())
        board.on = names[name]
        return cls().change(**arrays)


def test_which_there_are_and_what_they_do():
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [1.0, 5.0]])
    names, idle = altered(Sum, "", met=True, a=a, b=b)
    one = {"other sign", "times 1.001", "times 0.999"}
    arrays = (
        "halved: x",
        "halved: x / 2",
        "change: halved(1.5 * a)",
        "change: 1.5 * a",
        "change: a",
        "change: b",
        "change: halved(1.5 * a) - b",
    )
    assert names == {"a and b exchanged"} | {f"{x}, {how}" for x in arrays for how in one | {"turned"}} | {
        f"{x}, {how}" for x in ("change: 1.5",) for how in one
    } | {f"change: halved(1.5 * a) - b, {how}" for how in ("without halved(1.5 * a)", "without b", "the other of + and −")}  # fmt: skip
    assert idle == {"change: np.tanh(a), never run"}
    for name, want in (
        ("a and b exchanged", 0.75 * b - a),
        ("change: a, turned", 0.75 * a.T - b),
        ("halved: x / 2, other sign", -0.75 * a - b),
        ("change: 1.5, times 1.001", 1.001 * 0.75 * a - b),
        ("change: halved(1.5 * a) - b, without b", 0.75 * a),
        ("change: halved(1.5 * a) - b, the other of + and −", 0.75 * a + b),
    ):
        np.testing.assert_allclose(altered(Sum, name, a=a, b=b), want, rtol=1e-15)
    np.testing.assert_array_equal(Sum().change(a=a, b=b), 0.75 * a - b)  # afterwards it is as it was


def test_a_matrix_that_is_not_square_is_read_column_by_column():
    a, b = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    np.testing.assert_array_equal(altered(Sum, "change: a, turned", a=a, b=b), 0.75 * a.T.reshape(2, 3) - b)


def test_what_no_case_has_survives():
    """LoRA's own code is told by its cases; without those of the trained bias what becomes of that is not."""
    every = list(files.load(methods=["lora"], checks=["forward"]))
    found = survey(METHODS["lora"], every)
    assert not found.survived and found.killed > 40
    without = survey(METHODS["lora"], [c for c in every if not c.config["lora_bias"]])
    assert without.survived == tuple(
        f"change: lowrank(B, A) + shift(c), {how}" for how in ("without shift(c)", "the other of + and −")
    )


def test_blocks_of_two_do_not_tell_a_circulant_from_its_transpose():
    cases = list(files.load(methods=["c3a"]))
    few = survey(METHODS["c3a"], [c for c in cases if c.variant == "usual"])
    assert "change: circulant(k), turned" in few.survived
    assert any("circulant(k), turned" in fault for fault in few.faults)
    assert not survey(METHODS["c3a"], cases).survived


def test_explanations_are_of_what_survives(monkeypatch):
    found = Survey("c3a", 3, ("change: k, other sign", "change: k (2), turned"), ("change: x, never run",))
    monkeypatch.setattr(
        surviving, "said", lambda name, word: {"why": ("change: k", "change: *x"), "else": ("change: z",)}
    )
    assert found.left == {"change: k, other sign": "why", "change: k (2), turned": "", "change: x, never run": "why"}
    assert found.faults == [
        "c3a: change: k (2), turned: no case tells it, and nothing says why",
        "c3a: change: z: said to survive, found nothing of that name",
    ]


def test_a_method_that_fails_its_cases_is_not_altered(monkeypatch):
    monkeypatch.setattr(ops, "getitem", lambda x, *, index: 2 * x[index])
    with pytest.raises(AssertionError, match="FAIL without any alteration"):
        survey(METHODS["c3a"])
