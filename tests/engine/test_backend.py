"""The choice of the array library, its refusals, and what importing the engine costs."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import numpy as np
import pytest

from minipeft.engine import backend, use, xp
from minipeft.errors import Bad


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh process, since the backend is chosen once in each."""
    env = {k: v for k, v in os.environ.items() if k != "MINIPEFT_BACKEND"} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def numpy_again():
    yield
    use("numpy")


@pytest.mark.usefixtures("numpy_again")
class TestUse:
    def test_numpy(self):
        use("numpy")
        assert backend.name() == "numpy"
        assert xp.exp is np.exp

    @pytest.mark.parametrize(("word", "meant"), [("numppy", "numpy"), ("cuppy", "cupy"), ("NumPy", "numpy")])
    def test_an_unknown_name_is_refused_with_a_near_miss(self, word, meant):
        with pytest.raises(Bad, match=rf"backend '{word}' is unknown; expected one of numpy, cupy.*{meant}") as caught:
            use(word)
        assert "did you mean" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_cupy_that_cannot_be_imported(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", None)  # an import of it raises
        with pytest.raises(Bad, match=r"backend 'cupy' cannot be used here: .*needs an NVIDIA GPU.*numpy") as caught:
            use("cupy")
        assert "\n" not in str(caught.value)
        assert backend.name() == "numpy"  # a refusal leaves the choice as it was
        assert xp.exp is np.exp

    @pytest.mark.parametrize(
        "error", [None, RuntimeError("no driver\n\n  install one")], ids=["no-device", "no-driver"]
    )
    def test_cupy_without_a_gpu(self, monkeypatch, error):
        def count():
            if error:
                raise error
            return 0

        cupy = types.ModuleType("cupy")
        cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=count))
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        why = "no driver install one" if error else "no CUDA device"
        with pytest.raises(Bad, match=rf"'cupy' cannot be used here: {why}; it needs") as caught:
            use("cupy")
        assert "\n" not in str(caught.value)


def test_the_environment_chooses():
    asked = python("from minipeft.engine import backend; print(backend.name())", MINIPEFT_BACKEND="numpy")
    assert asked.stdout == "numpy\n"
    wrong = python("from minipeft.engine import xp; xp.zeros(3)", MINIPEFT_BACKEND="nunpy")
    assert wrong.returncode == 1
    assert "backend 'nunpy' is unknown" in wrong.stderr.splitlines()[-1]
    assert "did you mean numpy" in wrong.stderr.splitlines()[-1]


def test_importing_the_engine_loads_neither_scipy_nor_cupy():
    code = "import sys, minipeft.engine; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = python(code)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "minipeft" in loaded
    assert not {"scipy", "cupy", "torch", "typer", "rich"} & set(loaded)


def test_read_only_arrays_refuse_writes():
    x = backend.read_only(np.arange(3.0))
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        x += 1
    with pytest.raises(ValueError, match="read-only"):
        np.exp(x, out=x)
    with pytest.raises(ValueError, match="read-only"):
        x[1:][0] = 1  # nor through a view
    np.testing.assert_array_equal(x, [0, 1, 2])


def test_read_only_leaves_the_original_writable():
    x = np.zeros(2)
    backend.read_only(x)
    x[0] = 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf(dtype):
    """Abramowitz & Stegun, table 7.1."""
    x = np.array([0.0, 0.5, 1.0, -1.0, 2.0], dtype)
    got = backend.erf(x)
    assert got.dtype == dtype
    want = [0.0, 0.5204998778, 0.8427007929, -0.8427007929, 0.9953222650]
    np.testing.assert_allclose(got, want, rtol=0, atol=max(5.1e-11, 2 * np.finfo(dtype).eps))  # the table has 10 digits


def test_host_and_device():
    x = np.arange(3.0)
    assert backend.to_host(x) is x
    assert backend.to_device(x) is x
    assert backend.to_device([1, 2], np.float32).dtype == np.float32


def test_keep_freed_memory_changes_no_result():
    done = python("from minipeft.engine import backend as b, xp; b.keep_freed_memory(); print(xp.ones(1 << 20).sum())")
    assert done.stdout == "1048576.0\n", done.stderr
