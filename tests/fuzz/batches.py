"""Batches at and beyond the edge: a valid one of a recorded base, changed in up to three ways."""

from functools import cache
from pathlib import Path

import numpy as np

from minipeft.checkpoints import load
from minipeft.model.batch import INPUTS

ROOT = Path(__file__).parents[1] / "data" / "bases"
NAMES = sorted(p.name for p in ROOT.iterdir())


@cache
def base(name, dtype=np.float64):
    return load(ROOT / name, dtype)


def valid(arch, rng):
    """A batch that fits, of one to three rows; sometimes as long as the table of positions allows."""
    b, t = int(rng.integers(1, 4)), int(rng.integers(1, 7))
    if arch.patch:
        pixels = rng.standard_normal((b, arch.channels, arch.image, arch.image))
        return dict(pixel_values=pixels) | (dict(labels=rng.integers(0, arch.labels, b)) if arch.labels else {})
    if rng.random() < 0.1 and arch.max_positions:
        t = arch.max_positions - arch.first_position + int(rng.integers(-1, 2))
    given = dict(input_ids=rng.integers(3, arch.vocab, (b, t)))
    if rng.random() < 0.5:
        given["attention_mask"] = (rng.random((b, t)) < rng.choice([0.3, 0.7, 1.0])).astype(int)
    if arch.types and rng.random() < 0.3:
        given["token_type_ids"] = rng.integers(0, arch.types, (b, t))
    if arch.positions in ("learned", "rope") and rng.random() < 0.2:
        given["position_ids"] = rng.integers(0, arch.max_positions or 99, (b, t))
        given.setdefault("attention_mask", np.ones((b, t), int))  # without one, a jump in them is another thing
    u = int(rng.integers(1, 5)) if arch.encoder_layers else t
    shape = (b,) if arch.head == "classify" else (b, u)
    if arch.problem_of("i") in ("regression", "multi_label_classification"):
        given["labels"] = rng.integers(0, 2, (b, arch.labels)[: 2 if arch.labels > 1 else 1]).astype(float)
    elif arch.head != "none":
        labels = rng.integers(0, arch.labels or arch.vocab, shape)
        given["labels"] = np.where(rng.random(shape) < 0.3, -100, labels)
    if arch.encoder_layers and rng.random() < 0.4:
        given["decoder_input_ids"] = rng.integers(0, arch.vocab, (b, u))
        given["decoder_attention_mask"] = rng.integers(0, 2, (b, u))
    return given


def _values(x, arch, rng):
    """One value, or all, replaced by one at or beyond an end of its range."""
    ends = [
        -1,
        0,
        1,
        2,
        -100,
        arch.vocab - 1,
        arch.vocab,
        arch.labels,
        arch.max_positions,
        2**40,
        -(2**40),
        np.nan,
        np.inf,
        0.5,
        1e300,
    ]
    new = ends[rng.integers(len(ends))]
    x = x.astype(float) if isinstance(new, float) else x.copy()
    if rng.random() < 0.5 and x.size:
        x.flat[rng.integers(x.size)] = new
    else:
        x[...] = new
    return x


def _shape(x, arch, rng):
    shapes = [lambda: x[0], lambda: x[None], lambda: x.T, lambda: x[..., :0], lambda: x[:0], lambda: x[:1], lambda: x[..., :1],
              lambda: np.concatenate([x, x], axis=-1), lambda: np.concatenate([x, x]), lambda: x[..., None], lambda: np.array(3),
              lambda: x.reshape(-1)]  # fmt: skip
    return shapes[rng.integers(len(shapes))]()


def _type(x, arch, rng):
    types = [
        np.int8,
        np.uint8,
        np.int16,
        np.int32,
        np.uint64,
        bool,
        np.float16,
        np.float32,
        np.float64,
        complex,
        object,
        str,
    ]
    return x.astype(types[rng.integers(len(types))])


def _container(x, arch, rng):
    return [x.tolist(), None, 3, "text", [[1, 2], [3]], {}, x.tolist() * 2][rng.integers(7)]


def drawn(seed, n, changes=(0, 4)):
    """n batches: (name of the base, arrays, what was changed)."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        name = NAMES[rng.integers(len(NAMES))]
        arch = base(name).arch
        given, told = valid(arch, rng), []
        for _ in range(rng.integers(*changes)):
            if rng.random() < 0.2:  # one more array, of ones, or one fewer
                key = INPUTS[rng.integers(len(INPUTS))]
                shape = next((x.shape for x in given.values() if isinstance(x, np.ndarray)), (1, 3))
                shape = (*shape[:2], arch.d) if key.endswith("embeds") else shape
                new = {} if key in given else {key: np.ones(shape, int if "ids" in key else float)}
                given = {k: v for k, v in given.items() if k != key} | new
                told.append(f"± {key}")
                continue
            key = list(given)[rng.integers(len(given))] if given else None
            if not isinstance(given.get(key), np.ndarray):
                continue
            change = (_values, _values, _shape, _type, _container)[rng.integers(5)]
            try:
                with np.errstate(all="ignore"):
                    given[key] = change(given[key], arch, rng)
            except (ValueError, OverflowError, IndexError, TypeError):
                continue  # NumPy itself makes no such array
            told.append(f"{key}: {change.__name__}")
        yield name, given, told
