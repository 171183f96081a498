"""A checkpoint of a training that is not as it was written is refused, and then nothing of it is taken."""

import copy
import json

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.checkpoints.files import read_header, read_tensors, write_tensors
from minipeft.conformance import tiny
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.train import AdamW, fit, resume
from minipeft.train.resume import Checkpoint, identity_of
from minipeft.train.state import State

load_methods()
STEPS, WRITTEN = 9, 6
Q = "default/layers.0.attn.q.weight"
OWN = "own:default:I/layers.0.attn.q.weight:P"


def begun():
    adapted = attach(tiny.model(), METHODS["adalora"](r=3, target_r=2))
    return adapted, [tiny.example(adapted.model)], AdamW(lr=0.01)


class Enough(Exception):
    pass


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of a training that was killed after some steps, and its state."""
    path = tmp_path_factory.mktemp("killed") / "training.safetensors"
    adapted, data, optimiser = begun()

    def kill(t, *_):
        if t == WRITTEN:
            raise Enough

    with pytest.raises(Enough):
        fit(adapted, data, steps=STEPS, optimiser=optimiser, checkpoint=path, every=1, progress=kill)
    return path.read_bytes()


def checkpoint(path):
    adapted, data, optimiser = begun()
    state = State(dict(adapted.theta), optimiser.init(adapted.theta), {"default": {}})
    identity = identity_of(adapted, data, optimiser, STEPS, "constant", 0, None, 0)
    return Checkpoint(path, adapted, state, identity, STEPS), state


def held(state):
    return copy.deepcopy((state.theta, state.moments, state.own, state.losses, state.penalties))


def same(one, other):
    return repr(one) == repr(other) and all(
        a.tobytes() == b.tobytes() for x, y in zip(one[:2], other[:2]) for a, b in zip(x.values(), y.values())
    )


def test_it_goes_on_where_it_was_left(written, tmp_path):
    (path := tmp_path / "training.safetensors").write_bytes(written)
    kept, state = checkpoint(path)
    assert kept.restore(state) == WRITTEN == len(state.losses) == len(state.penalties)
    assert {k.partition("/")[0] for k in state.own["default"]} == {"I", "U", "keep"}
    kept.save(state, WRITTEN)
    assert path.read_bytes() == written


def dropped(*starts):
    return lambda a, about: [a.pop(k) for k in list(a) if k.startswith(starts)]


def put(key, x):
    def change(arrays, about):
        arrays[key] = arrays[key].copy()
        arrays[key].reshape(-1)[1] = x

    return change


def made(key, f):
    return lambda arrays, about: arrays.update({key: f(arrays[key])})


def step(x):
    return lambda arrays, about: about.update(step=x)


CHANGES = {
    "no theta": (dropped("theta:"), "array 'theta:.*' is missing"),
    "no moments": (dropped("moments:"), "array 'moments:.*' is missing"),
    "a moment less": (dropped(f"moments:v/{Q}:P"), "array 'moments:v/.*:P' is missing"),
    "no losses": (dropped("losses"), "array 'losses' is missing"),
    "one of what is kept": (dropped(OWN), f"array '{OWN}' is missing"),
    "theta of another": (lambda a, _: a.update({f"theta:{Q}:PP": a[f"theta:{Q}:P"]}), r"unexpected array .*did you mean"),
    "unknown": (lambda a, _: a.update(strange=np.zeros(2)), "unexpected array 'strange'"),
    "unknown kept": (lambda a, _: a.update({"own:default:X": np.zeros(2)}), "unexpected array 'own:default:X'"),
    "kept by another": (lambda a, _: a.update({"own:other:I": np.zeros(2)}), "unexpected array 'own:other:I'"),
    "kept of another": (lambda a, _: a.update({f"{OWN}P": np.zeros(2)}), "unexpected array"),
    "relabelled": (made(f"theta:{Q}:P", lambda x: x.view(np.int64)), r"P: expected float64 of shape \(24, 3\), found int64"),
    "float32": (made(f"moments:m/{Q}:P", lambda x: x.astype(np.float32)), "expected float64 of shape .*, found float32"),
    "turned": (made(f"theta:{Q}:P", lambda x: x.T), r"expected float64 of shape \(24, 3\), found float64 of shape \(3, 24\)"),
    "kept turned": (made(OWN, lambda x: x.T), r"expected float64 of shape \(24, 3\), found float64 of shape \(3, 24\)"),
    "no truth": (made("own:default:keep/layers.0.attn.q.weight:lam", lambda x: x.astype(np.uint8)), "expected bool of shape"),
    "NaN": (put(f"theta:{Q}:P", np.nan), "theta:.*P has NaN or infinite values"),
    "inf": (put(f"theta:{Q}:P", np.inf), "theta:.*P has NaN or infinite values"),
    "NaN moment": (put(f"moments:v/{Q}:P", np.nan), "moments:.*P has NaN or infinite values"),
    "NaN kept": (put(OWN, np.nan), "own:.*P has NaN or infinite values"),
    "NaN loss": (put("losses", np.nan), "losses has NaN or infinite values"),
    "a loss more": (made("losses", lambda x: np.append(x, 1)), r"losses: expected float64 of shape \(6,\), found float64 of shape \(7,\)"),
    "a penalty less": (made("penalties", lambda x: x[:-1]), r"penalties: expected .* of shape \(6,\), found float64 of shape \(5,\)"),
    "step 5": (step(5), r"expected float64 of shape \(5,\), found float64 of shape \(6,\)"),
    **{f"step {x!r}": (step(x), f"expected a step from 1 to 9, found {x!r}") for x in (10**9, 10, 0, -1, "6", True, 6.0, None)},
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_does_not_fit_is_refused_and_nothing_taken(what, written, tmp_path, monkeypatch):
    """By somebody who knows of the digest, too."""
    change, says = CHANGES[what]
    (path := tmp_path / "training.safetensors").write_bytes(written)
    arrays, about = dict(read_tensors(path)), json.loads(read_header(path)["__metadata__"]["training"])
    about.pop("digest")
    change(arrays, about)
    about["digest"] = resume._digest(about, arrays)
    write_tensors(path, arrays, {"training": json.dumps(about)})
    kept, state = checkpoint(path)
    before = held(state)
    with pytest.raises(Bad, match=f"training.safetensors: .*{says}.*; remove the file to start afresh") as caught:
        kept.restore(state)
    assert "\n" not in str(caught.value) and same(held(state), before)


@pytest.mark.parametrize("key", [f"theta:{Q}:P", f"moments:m/{Q}:Q", OWN, "losses", "step"])
def test_a_flipped_bit_is_noticed(key, written, tmp_path):
    (path := tmp_path / "training.safetensors").write_bytes(written)
    header, raw = read_header(path), bytearray(written)
    length = int.from_bytes(raw[:8], "little")
    if key == "step":  # and what would go with it
        arrays, about = dict(read_tensors(path)), json.loads(header["__metadata__"]["training"])
        about["step"] -= 1
        arrays |= {k: arrays[k][:-1] for k in ("losses", "penalties")}
        write_tensors(path, arrays, {"training": json.dumps(about)})
    else:
        raw[8 + length + header[key]["data_offsets"][0] + 9] ^= 1
        path.write_bytes(raw)
    kept, state = checkpoint(path)
    before = held(state)
    with pytest.raises(Bad, match="damaged: what it holds is not what was written; remove the file to start afresh"):
        kept.restore(state)
    assert same(held(state), before)


def test_two_trainings_do_not_write_one_file(tmp_path):
    path = tmp_path / "training.safetensors"
    adapted, data, optimiser = begun()

    def another(t, *_):
        if t == 2:
            fit(adapted, data, steps=1, optimiser=optimiser, checkpoint=tmp_path / "other", every=1)
            (tmp_path / "other").replace(path)

    with pytest.raises(Bad, match=r"training\.safetensors: another training writes to this file; give each a folder"):
        fit(adapted, data, steps=4, optimiser=optimiser, checkpoint=path, every=1, progress=another)
    path.unlink()
    gone = lambda t, *_: path.unlink() if t == 2 else None  # which is nobody's file
    fit(adapted, data, steps=4, optimiser=optimiser, checkpoint=path, every=1, progress=gone)
    assert path.exists()


def test_what_is_kept_and_not_declared_is_told_before_it_is_lost(tmp_path):
    class Counting(METHODS["lora"], register=False):
        def after_step(self, step):
            step.state["seen"] = np.zeros(1)

    adapted = attach(tiny.model(), Counting(r=2))
    with pytest.raises(Bad, match="not written after step 1: unexpected array 'own:default:seen'"):
        fit(adapted, [tiny.example(adapted.model)], steps=1, checkpoint=tmp_path / "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_lost_is_not_written(tmp_path):
    """The next step would find it, from a file that can no longer be used."""

    class Lost(METHODS["lora"], register=False):
        def after_step(self, step):
            step.theta = {s: {n: x * np.inf for n, x in own.items()} for s, own in step.theta.items()}

    adapted = attach(tiny.model(), Lost(r=2))
    with pytest.raises(Bad, match=r"step 1: .* is no longer finite; lower the learning rate"):
        fit(adapted, [tiny.example(adapted.model)], steps=4, checkpoint=tmp_path / "t", every=1)
    assert not list(tmp_path.iterdir())
