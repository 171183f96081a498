"""Checks an exercise, and says in one line what is wrong.

python examples/exercises/check.py 3          the file of exercise 3
python examples/exercises/check.py 3 FILE     another file
python examples/exercises/check.py            all six
"""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.engine import Tensor, ops, value, value_and_grad

HERE = Path(__file__).parent
FILES = {int(p.stem[0]): p for p in sorted(HERE.glob("[0-9]_*.py"))}


class Wrong(Exception):
    """What is wrong with an answer, in a line."""


def same(name: str, found: Any, want: np.ndarray, known: dict[str, np.ndarray] | None = None) -> None:
    """Raise `Wrong` unless an answer is what is wanted. `known` are wrong answers by what is to be said of them."""
    if found is None:
        raise Wrong(f"{name} is still None: write it where the file says yours")
    found = np.asarray(value(found))
    if found.shape != want.shape:
        raise Wrong(f"{name}: expected shape {want.shape}, found {found.shape}")
    off = ~np.isclose(found, want, rtol=1e-6, atol=1e-8 * max(1.0, float(abs(want).max())))
    if not off.any():
        return
    for said, other in (known or {}).items():
        if other.shape == found.shape and np.allclose(found, other):
            raise Wrong(f"{name}: {said}")
    at = tuple(int(i) for i in np.argwhere(off)[0])
    raise Wrong(f"{name}{list(at)}: expected {want[at]:.6g}, found {found[at]:.6g}; {off.mean():.0%} of it is wrong")


def differences(f: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """The gradient of f at x, every element moved by itself."""
    grad = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        d = np.zeros_like(x)
        d[at] = h
        grad[at] = (f(x + d) - f(x - d)) / (2 * h)
    return grad


def a_vjp(answer: Any) -> None:
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((2, 3, 4))
    y, (vjp,) = answer.unit(x)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    same("y", y, x / norm)
    held = {"the norm depends on x too; this is the gradient with the norm held constant": g / norm}
    same("vjp(g)", vjp(g), differences(lambda x: (g * answer.unit(x)[0]).sum(), x), held)


def lora_gradients(answer: Any) -> None:
    rng = np.random.default_rng(2)
    x, g, W = rng.standard_normal((3, 7)), rng.standard_normal((3, 5)), rng.standard_normal((5, 7))
    theta, s = dict(A=rng.standard_normal((2, 7)), B=rng.standard_normal((5, 2)), x=x), 3.0
    grads = answer.gradients(g, x, W, theta["A"], theta["B"], s)

    def loss(**t: np.ndarray) -> float:
        return float((g * (t["x"] @ (W + s * t["B"] @ t["A"]).T)).sum())

    for name in theta:
        want = differences(lambda a, name=name: loss(**theta | {name: a}), theta[name])
        known = {"the scale s is missing": want / s} if name != "x" else {"it runs through the adapter too": g @ W}
        same(f"the gradient by {name}", grads.get(name), want, known)


def masks_and_positions(answer: Any) -> None:
    p = 3
    for side, mask in {"right": [[1, 1, 1, 1], [1, 1, 0, 0]], "left": [[1, 1, 1, 1], [0, 0, 1, 1]]}.items():
        mask = np.array(mask)
        ids = np.where(mask == 1, [[11, 12, 13, 14], [15, 16, 17, 18]], 0)
        found = answer.with_prompt(ids.copy(), mask.copy(), p)
        want: dict[str, list] = dict(mask=[], positions=[], labels=[])
        for row, seen in zip(ids, mask):  # a row at a time, a token at a time
            position = p
            for key, start in dict(mask=[1] * p, positions=list(range(p)), labels=[-100] * p).items():
                want[key].append(start)
            for token, real in zip(row, seen):
                want["mask"][-1].append(int(real))
                want["positions"][-1].append(position if real else 0)
                want["labels"][-1].append(int(token) if real else -100)
                position += int(real)
        arrays = {k: np.array(v) for k, v in want.items()}
        counted = np.broadcast_to(np.arange(p + mask.shape[1]), arrays["mask"].shape) * arrays["mask"]
        known = {
            "mask": {"virtual tokens must be seen": arrays["mask"] * (np.arange(p + mask.shape[1]) >= p)},
            "positions": {
                "padding is counted; the text of every row goes on from p": counted,
                "the text must move up by p": np.where(arrays["labels"] != -100, arrays["positions"] - p, arrays["positions"]),
            },
            "labels": {"padding has no label but −100": np.concatenate([arrays["labels"][:, :p], ids], axis=1)},
        }  # fmt: skip
        for key, array in arrays.items():
            got = found.get(key)
            if key == "positions" and got is not None and np.shape(got) == array.shape:
                got = got * arrays["mask"]  # those of padding do not matter
            same(f"{key}, padded on the {side}", got, array, known[key])


def a_detached_norm(answer: Any) -> None:
    rng = np.random.default_rng(4)
    W, g, s = rng.standard_normal((5, 7)), rng.standard_normal((5, 7)), 3.0
    theta = dict(A=rng.standard_normal((2, 7)), B=rng.standard_normal((5, 2)), m=rng.uniform(1, 3, 5))
    V = W + s * theta["B"] @ theta["A"]
    norm, m = np.linalg.norm(V, axis=1), theta["m"]
    columns = {"the norm is taken row by row": V * m[:, None] / np.linalg.norm(V, axis=0)}
    same("W'", answer.weight(W, s=s, **theta), (m / norm)[:, None] * V, columns)
    if not isinstance(answer.weight(W, s=s, **{k: Tensor(v) for k, v in theta.items()}), Tensor):
        raise Wrong("W' is a constant: it has no gradient at all; detach the norm alone")
    _, grads = value_and_grad(lambda t: ops.sum(g * answer.weight(W, s=s, **t)))(theta)

    def loss(norm: Any, **t: np.ndarray) -> float:
        V = W + s * t["B"] @ t["A"]
        return float((g * V * (t["m"] / (np.linalg.norm(V, axis=1) if norm is None else norm))[:, None]).sum())

    for name in ("m", "A", "B"):
        want, full = (
            differences(lambda a, name=name, n=n: loss(n, **theta | {name: a}), theta[name]) for n in (norm, None)
        )
        known = {"the norm is not detached: the gradient runs through it": full, "it is detached as well": 0 * want}
        same(f"the gradient by {name}", grads[name], want, known)


def four_bits(answer: Any) -> None:
    from minipeft.quantize import NF4_CODEBOOK, quantize

    W = np.random.default_rng(5).standard_normal((6, 32)).astype(np.float32)
    held = quantize(W, block=16)
    want = np.stack([held.codes >> 4, held.codes & 15], axis=1).reshape(-1, 16)
    codes, constants = answer.quantise(W, NF4_CODEBOOK, 16)
    if np.shape(constants) == (len(W),):
        raise Wrong("constants: one for each block, not for each row")
    signed = {"they are the largest of the absolute values": W.reshape(-1, 16).max(axis=1)}
    same("constants", constants, held.absmax, signed)
    below = np.searchsorted(NF4_CODEBOOK, W.reshape(-1, 16) / held.absmax[:, None], side="right") - 1
    same("codes", codes, want, {"the nearest value, not the next one below": below})
    same("Ŵ", answer.dequantise(want, held.absmax, NF4_CODEBOOK, W.shape), held.dequantize())


def a_method(answer: Any) -> None:
    from minipeft.conformance import laws

    method = answer.TwoScales()
    if not hasattr(method, "v"):
        raise Wrong("v is not declared: it is an array like u, with a number for each column")
    rng = np.random.default_rng(6)
    W, u, v = rng.standard_normal((5, 7)), rng.standard_normal(5), rng.standard_normal(7)
    same("W'", method.weight(W, u=u, v=v), (1 + u)[:, None] * W * (1 + v), {"1 + u, not u": u[:, None] * W * v})
    for verdict in laws.check(type(method), ["llama"]):
        if verdict.outcome != "pass":
            raise Wrong(f"the law {verdict.law}: {verdict.reason or 'it does not fit a decoder'}")


CHECKS = dict(enumerate((a_vjp, lora_gradients, masks_and_positions, a_detached_norm, four_bits, a_method), 1))


def verdict(number: int, path: Path) -> str:
    """What is wrong with an answer, '' if nothing is."""
    spec = importlib.util.spec_from_file_location(f"exercise_{number}", path)
    try:
        answer = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[answer.__name__] = answer  # dataclasses look there
        spec.loader.exec_module(answer)  # type: ignore[union-attr]
        CHECKS[number](answer)
    except Wrong as why:
        return str(why)
    except Exception as why:
        lines = [f.lineno for f in traceback.extract_tb(why.__traceback__) if f.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        return f"{path.name}{where}: {type(why).__name__}: {' '.join(str(why).split())}"
    return ""


def main(words: list[str]) -> int:
    """The exit status: 0 if all that was checked is right."""
    if len(words) > 2 or (words and words[0] not in map(str, CHECKS)):
        print(f"expected the number of an exercise, 1 … {len(CHECKS)}, and perhaps a file; found {' '.join(words)}")
        return 2
    numbers = [int(words[0])] if words else list(CHECKS)
    wrong = 0
    for number in numbers:
        path = Path(words[1]) if len(words) == 2 else FILES[number]
        said = verdict(number, path)
        wrong += bool(said)
        print(f"exercise {number}: {said or 'right'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
