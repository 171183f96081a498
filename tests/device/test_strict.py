"""The stand-in for CuPy: each thing it refuses, and what it counts."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import strict
from both import agree
from scipy import special
from strict import traffic

from minipeft.adapted import Adapted
from minipeft.attaching import attach
from minipeft.checkpoints import native
from minipeft.conformance import tiny
from minipeft.conformance.laws import LAWS
from minipeft.engine import Tensor, backend, use, value, xp
from minipeft.errors import Bad
from minipeft.methods.lowrank.lora import LoRA
from minipeft.model.batch import batch
from minipeft.train import fit

HOST = np.arange(6.0).reshape(2, 3)


@pytest.fixture(autouse=True)
def chosen():
    use("strict")
    traffic.clear()
    yield
    use("numpy")


@pytest.fixture
def x():
    made = xp.asarray(HOST)
    traffic.clear()
    return made


def test_it_is_a_backend_of_its_own(x):
    assert backend.name() == "strict" and xp.ndarray is strict.ndarray
    assert type(x) is strict.ndarray and not isinstance(x, np.ndarray)


REFUSED = {
    "operand": (lambda x: x * HOST, "Unsupported type <class 'numpy.ndarray'>"),
    "operand on the left": (lambda x: HOST * x, "Unsupported type"),
    "array without axes": (lambda x: x * np.array(2.0), "Unsupported type"),
    "in place": (lambda x: x.__iadd__(HOST), "Unsupported type"),
    "product": (lambda x: x @ HOST.T, "Unsupported type"),
    "comparison": (lambda x: x == HOST, "Unsupported type"),
    "argument": (lambda x: xp.exp(HOST), "Unsupported type"),
    "second argument": (lambda x: xp.maximum(x, HOST), "Unsupported type"),
    "in a list": (lambda x: xp.concatenate([x, HOST]), "Unsupported type"),
    "keyword": (lambda x: xp.exp(x, out=np.zeros((2, 3))), "Unsupported type"),
    "method's argument": (lambda x: x.dot(HOST.T), "Unsupported type"),
    "condition": (lambda x: xp.where(HOST > 1, x, 0), "Unsupported type"),
    "index": (lambda x: x[np.array([0])], "an index must be"),
    "index in a tuple": (lambda x: x[:, np.array([0])], "an index must be"),
    "list as index": (lambda x: x[[0]], "an index must be"),
    "index to write at": (lambda x: x.__setitem__(np.array([0]), 1.0), "an index must be"),
    "value to write": (lambda x: x.__setitem__(0, HOST[0]), "Unsupported type"),
    "scatter": (lambda x: xp.add.at(x, np.array([0]), x[0]), "an index must be"),
    "scatter of integers": (lambda x: xp.add.at(xp.zeros(3, int), xp.arange(3), 1), "takes arrays of float16"),
    "conversion": (lambda x: np.asarray(x), "Implicit conversion to a NumPy array is not allowed"),
    "conversion in a list": (lambda x: np.array([x, x]), "Implicit conversion"),
    "a function of NumPy": (lambda x: np.concatenate([x, x]), "numpy.concatenate was called"),
    "a reduction of NumPy": (lambda x: np.add.reduce(x), "Unsupported type"),
    "going through it": (lambda x: list(x), "not gone through element by element"),
    "unpacking": (lambda x: [*x], "not gone through element by element"),
    "initial": (lambda x: x.max(initial=0.0), "unexpected keyword argument 'initial'"),
    "masked sum": (lambda x: x.sum(where=x > 0), "unexpected keyword argument 'where'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_host_has_is_refused(what, x):
    f, said = REFUSED[what]
    with pytest.raises(TypeError, match=re.escape(said)):
        f(x)


@pytest.mark.parametrize(
    "name",
    [
        "errstate",
        "frompyfunc",
        "nditer",
        "vecdot",
        "insert",
        "random",
        "linalg.vector_norm",
        "linalg.svdvals",
        "no_such",
    ],
)
def test_what_cupy_lacks_is_lacking(name):
    module, _, leaf = name.rpartition(".")
    with pytest.raises(AttributeError, match=name):
        getattr(getattr(xp, module) if module else xp, leaf)


@pytest.mark.parametrize("name", ["setflags", "put", "tostring", "ctypes", "byteswap"])
def test_methods_that_are_not_needed_are_absent(name, x):
    with pytest.raises(AttributeError):
        getattr(x, name)


def test_there_is_no_flag_to_make_it_read_only(x):
    with pytest.raises(AttributeError):
        _ = x.flags.writeable
    assert backend.read_only(x) is x


def test_solve_does_not_broadcast():
    M, y = xp.eye(2), xp.zeros((3, 2, 1))
    with pytest.raises(ValueError, match="must have"):
        xp.linalg.solve(M, y)


def test_argsort_knows_the_stable_kind_alone(x):
    with pytest.raises(ValueError, match="stable"):
        xp.argsort(x, kind="heapsort")
    assert xp.argsort(x, kind="stable").shape == (2, 3)


def test_numbers_go_together_with_arrays(x):
    single = xp.asarray(HOST, np.float32)
    assert (single * 2).dtype == (0.5 * single).dtype == np.float32  # Python's are weak
    assert (single * np.float64(2)).dtype == (np.float64(2) * single).dtype == np.float64  # NumPy's are not
    assert (single * xp.full((), 2.0)).dtype == np.float64  # nor is an array without axes
    assert xp.maximum(single, 0).dtype == np.float32
    assert type(np.float64(2) * x) is strict.ndarray


def test_a_tensor_on_the_right_is_asked(x):
    for y in (x * Tensor(x), x + Tensor(x), x - Tensor(x), x / Tensor(x + 1), x.T @ Tensor(x)):
        assert type(y) is Tensor


def test_one_element_is_an_array_and_a_view(x):
    one = x[1, 2]
    assert one.shape == () and type(x.sum()) is strict.ndarray and type(xp.sum(x)) is strict.ndarray
    one += 1
    assert float(x[1, 2]) == 6.0
    with pytest.raises(TypeError, match="unsized"):
        len(one)


def test_writing(x):
    y = xp.zeros((2, 3))
    assert xp.exp(x, out=y) is y
    y[0] = x[0]
    y[1, xp.asarray([0, 2])] = 7.0
    xp.add.at(y, xp.asarray([0, 0]), xp.ones((2, 3)))
    xp.put_along_axis(y, xp.zeros((2, 1), int), xp.full((2, 1), -1.0), 1)
    assert y.get().tolist() == [[-1, 3, 4], [-1, float(np.exp(4)), 7]]


COUNTED = {
    "get": lambda x: x.get(),
    "asnumpy": lambda x: xp.asnumpy(x),
    "to_host": lambda x: backend.to_host(x),
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool((x > 0).all()),
    "int": lambda x: int(x.argmax()),
    "float": lambda x: float(x.sum()),
    "in a condition": lambda x: 1 if x[0, 0] else 2,
    "as an index of a list": lambda x: [0, 1, 2, 3, 4, 5][x.argmax()],
    "tolist": lambda x: x.tolist(),
    "repr": lambda x: repr(x),
    "mask": lambda x: x[x > 1],
    "writing to a mask": lambda x: x.__setitem__(x > 1, 0.0),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: xp.where(x > 1),
    "triu_indices": lambda x: xp.triu_indices(3, 1),
    "unique": lambda x: xp.unique(x),
}


@pytest.mark.parametrize("what", COUNTED)
def test_what_waits_is_counted(what, x):
    COUNTED[what](x)
    assert (traffic.to_host, traffic.to_device) == (1, 0)


def test_what_does_not_wait_is_not(x):
    y = xp.where(x > 1, x, 0) @ x.T + xp.arange(2)[:, None] * 2.0
    y[0] *= 2
    _ = xp.full((), 0.5), len(x), x.shape, xp.linalg.svd(x), x[xp.argsort(x[:, 0])], xp.einsum("...i,...i->...", x, x)
    assert (traffic.to_host, traffic.to_device) == (0, 0)


def test_what_is_moved_there_is_counted(x):
    backend.to_device(HOST), xp.asarray(0.5), xp.array([1, 2])
    assert traffic.to_device == 3
    backend.to_device(x), xp.asarray(x, np.float32)
    assert traffic.to_device == 3


def test_constants_are_moved_once():
    @backend.once
    def table(n):
        return np.arange(n), np.ones(n)

    a, b = table(3)
    assert type(a) is type(b) is strict.ndarray and table(3)[0] is a
    assert traffic.to_device == 2
    use("numpy")
    assert type(table(3)[0]) is np.ndarray


def test_values_equal_numpys(x):
    np.testing.assert_array_equal(xp.linalg.svd(x, full_matrices=False)[1].get(), np.linalg.svd(HOST)[1])
    np.testing.assert_array_equal(xp.fft.ifft2(x).real.get(), np.fft.ifft2(HOST).real)
    np.testing.assert_array_equal(backend.erf(x).get(), special.erf(HOST))
    assert xp.finfo(np.float32) is not None and xp.float64 is np.float64


def test_two_backends_in_one_process(x):
    with pytest.raises(Bad, match=r"weight is an array of numpy, and the backend is strict: choose the backend"):
        backend.refuse_others({"weight": HOST})
    backend.refuse_others({"weight": x, "taped": Tensor(x), "none": None, "number": 3})
    use("numpy")
    with pytest.raises(Bad, match=r"an array is an array of strict, and the backend is numpy"):
        backend.to_device(x)


# --- the ways in and out ----------------------------------------------------------------------------------------------


def test_the_comparison_with_numpy_sees_a_small_error():
    inputs = {"x": np.linspace(0.5, 2, 7)}

    def f(given):
        off = 1e-14 if backend.name() == "strict" else 0.0
        return {"y": xp.exp(given["x"]) * (1 + off)}

    with pytest.raises(AssertionError, match=r"y: apart by .* err/\(u·cond\) ="):
        agree(f, inputs)
    assert agree(lambda given: {"y": xp.exp(given["x"])}, inputs) <= 1


def test_a_step_that_waits_is_seen():
    @dataclass(frozen=True)
    class Waiting(LoRA, register=False):
        def penalty(self, arrays):
            return 0.0 if float(value(next(iter(arrays.values()))["A"]).sum()) else None

    model = tiny.model()
    adapted, batch = attach(model, Waiting(r=2)), tiny.example(model)
    traffic.clear()
    fit(adapted, [batch], steps=3)
    # the loss, and the penalty in it and by itself; at the end, whether all is finite
    assert traffic.to_host == 3 * 3 + 1


def test_a_batch_remembers_what_it_was_on_the_host():
    ids, mask = np.array([[3, 4, 5]]), np.array([[0, 1, 1]])
    given = batch(input_ids=ids, attention_mask=mask, labels=[[-100, 4, 5]])
    traffic.clear()
    assert given.host("input_ids") is ids and given.tokens == 2 and given.rows == 1
    more = given.having(labels=None, input_ids=np.array([[7, 7, 7]]))
    assert (
        more.labels is None and more.host("input_ids").tolist() == [[7, 7, 7]] and more.host("attention_mask") is mask
    )
    assert traffic.to_host == 0
    changed = replace(given, input_ids=xp.asarray([[1, 1, 1]]))  # made on the device: it must be fetched
    assert changed.host("input_ids").tolist() == [[1, 1, 1]] and traffic.to_host == 1


def test_labels_out_of_range_are_one_line():
    model = tiny.model("bert")
    with pytest.raises(Bad, match=r"labels must lie in 0 … 4 or be -100, found 5"):
        Adapted(model).logits(batch(input_ids=np.array([[5, 9, 3]]), labels=np.array([5])))


@pytest.mark.parametrize(
    ("kind", "module", "bases", "line"),
    [
        (
            "OutOfMemoryError",
            "cupy.cuda.memory",
            (MemoryError,),
            r"the GPU has no memory left: allocating 1,024 bytes.*fewer rows",
        ),
        (
            "CUDARuntimeError",
            "cupy_backends.cuda.api.runtime",
            (RuntimeError,),
            r"the GPU or its driver failed: allocating.*start",
        ),
    ],
)
def test_what_a_device_raises_becomes_one_line(kind, module, bases, line, tmp_path, monkeypatch):
    error = type(kind, bases, {"__module__": module})("allocating 1,024\nbytes")
    with pytest.raises(Bad, match=line) as told, backend.explained():
        raise error
    assert "\n" not in str(told.value)

    def lost(x):
        raise error

    adapted = attach(tiny.model(), "lora")
    monkeypatch.setattr(native, "to_host", lost)
    with pytest.raises(Bad, match=line), backend.explained():
        native.save_adapter(adapted, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()  # nothing is half written


def test_other_errors_stay_what_they_are():
    for error in (MemoryError("of the host"), RuntimeError("ours"), Bad("said already")):
        with pytest.raises(type(error)) as told, backend.explained():
            raise error
        assert told.value is error


@pytest.mark.parametrize("name", ["compare", "train", "merge", "replay", "check", "verify", "bench"])
def test_every_command_that_computes_takes_a_backend(name, capsys):
    from minipeft.cli import main  # a GPU machine may lack what it needs

    with pytest.raises(SystemExit) as ended:
        main([name, "--backend", "cuppy"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "backend 'cuppy' is unknown" in error and "did you mean cupy" in error
    assert "Traceback" not in error


def test_the_command_line_and_the_processes_it_starts(capsys):
    from minipeft.cli import main

    use("numpy")
    with pytest.raises(SystemExit) as ended:
        main(["check", "lora", "--family", "llama", "--backend", "strict"])
    assert ended.value.code == 0 and backend.name() == "strict" and f"{len(LAWS)} hold" in capsys.readouterr().out
    asked = [sys.executable, "-c", "from minipeft.engine import backend; print(backend.name())"]
    assert (
        subprocess.run(asked, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout
        == "strict\n"
    )
