"""Every exercise's check passes its solution, and says of other answers what is wrong with them."""

import importlib.util
from pathlib import Path

import pytest

from minipeft.method import METHODS

HERE = Path(__file__).parents[1] / "examples" / "exercises"
spec = importlib.util.spec_from_file_location("check_exercises", HERE / "check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

PLANTED = [  # exercise, what stands in its solution, what is there instead, what is said of it
    (1, "(g - y * (g * y).sum(axis=-1, keepdims=True)) / norm", "g / norm", "vjp(g): the norm depends on x too"),
    (1, "(g * y)", "(g * x)", "vjp(g)[0, 0]: expected"),
    (2, "A=s * B.T @ G", "A=B.T @ G", "the gradient by A: the scale s is missing"),
    (2, "B=s * G @ A.T", "B=s * A @ G.T", "the gradient by B: expected shape (5, 2), found (2, 5)"),
    (2, "g @ (W + s * B @ A)", "g @ W", "the gradient by x: it runs through the adapter too"),
    (3, "np.ones((rows, p), int)", "np.zeros((rows, p), int)", "padded on the right: virtual tokens must be seen"),
    (3, "np.cumsum(mask, axis=1) - 1", "np.arange(mask.shape[1]) + 0 * mask", "padded on the left: padding is counted"),
    (3, "p + np.max", "np.max", "positions, padded on the right: the text must move up by p"),
    (3, "np.where(mask == 1, ids, -100)", "ids", "labels, padded on the right: padding has no label"),
    (4, "stop_gradient(ops.norm(V, axis=1))", "ops.norm(V, axis=1)", "the gradient by A: the norm is not detached"),
    (4, "V = W + s * (B @ A)", "V = stop_gradient(W + s * (B @ A))", "the gradient by A: it is detached as well"),
    (4, "return V * ", "return stop_gradient(V) * stop_gradient", "W' is a constant"),
    (
        4,
        "(m / stop_gradient(ops.norm(V, axis=1)))[:, None]",
        "m[:, None] / ops.norm(V, axis=0)",
        "W': the norm is taken row by row",
    ),
    (5, "abs(flat).max", "flat.max", "constants: they are the largest of the absolute values"),
    (
        5,
        "return codes, constants",
        "return codes, abs(W).max(axis=1)",
        "constants: one for each block, not for each row",
    ),
    (5, "- codebook)", "+ codebook)", "codes[0, 0]: expected"),
    (5, "* constants[:, None]).reshape", ").reshape", "Ŵ[0, 0]: expected"),
    (6, "(1 + u)[:, None] * W * (1 + v)", "u[:, None] * W * v", "W': 1 + u, not u"),
    (6, 'trained("in")', 'trained("out")', "the law identity: ValueError: operands could not be broadcast"),
    (6, 'trained("in")', 'trained("in", start=__import__("minipeft").declare.fill(1))', "the law identity:"),
]


@pytest.fixture(autouse=True)
def _no_method_stays():
    yield
    METHODS.pop("two_scales", None)


def solution(number):
    return HERE / "solutions" / check.FILES[number].name


@pytest.mark.parametrize("number", check.CHECKS)
def test_its_check_passes_the_solution_and_not_the_hole(number, capsys):
    assert check.main([str(number), str(solution(number))]) == 0
    assert check.main([str(number)]) == 1
    right, hole = capsys.readouterr().out.splitlines()
    assert right == f"exercise {number}: right"
    assert "is still None: write it where the file says yours" in hole or "v is not declared" in hole


@pytest.mark.parametrize(("number", "right", "wrong", "said"), PLANTED)
def test_its_check_says_what_is_wrong(number, right, wrong, said, tmp_path):
    text = solution(number).read_text(encoding="utf-8")
    assert text.count(right) == 1
    answer = tmp_path / "answer.py"
    answer.write_text(text.replace(right, wrong), encoding="utf-8")
    found = check.verdict(number, answer)
    assert said in found and "\n" not in found


def test_a_solution_differs_from_its_file_where_it_says_yours():
    for number, path in check.FILES.items():
        hole, full = (p.read_text(encoding="utf-8").split('"""')[1] for p in (path, solution(number)))
        assert hole == full


def test_a_user_error_is_a_line(capsys):
    assert check.main(["7"]) == 2 and "expected the number of an exercise, 1 … 6" in capsys.readouterr().out
    assert check.main(["1", "nowhere.py"]) == 1 and "FileNotFoundError" in capsys.readouterr().out
