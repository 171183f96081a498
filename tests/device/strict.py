"""A stand-in for CuPy on NumPy: what CuPy 14 refuses is refused here, and what crosses to the host is counted.

`use("strict")`, or MINIPEFT_BACKEND=strict, chooses it, so that a machine without a GPU can test that code keeps to the device.
Its arrays are of a type of their own. As operands, arguments and indices they go together with one another and with numbers,
not with NumPy's arrays; NumPy's own functions do not take them. What CuPy lacks, or computes for fewer arguments, is lacking
here too. Where CuPy would move something without being told to, an index that is a list or an array of the host, this is
stricter and refuses.

`traffic.to_host` counts what waits for the device: `get`, `item`, `bool`, `float`, an index that is a mask, whatever has a shape
that depends on values. `traffic.to_device` counts arrays and numbers that are moved there.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Traffic:
    """How often something crossed between host and device since `clear`."""

    to_host: int = 0
    to_device: int = 0

    def clear(self) -> None:
        self.to_host = self.to_device = 0


traffic = Traffic()


def _plain(x: Any) -> Any:
    """What NumPy computes with: the array within, in lists and tuples too. Raises TypeError for an array of the host."""
    if type(x) is ndarray:
        return x._held
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if type(x) in (list, tuple):
        return type(x)(_plain(v) for v in x)
    if type(x) is dict:
        return {k: _plain(v) for k, v in x.items()}
    return x


def _held(x: Any) -> Any:
    """A result of NumPy as an array of the device; numbers are arrays without axes."""
    if isinstance(x, np.ndarray | np.generic):
        return ndarray(np.asarray(x))
    if isinstance(x, list | tuple):  # a result may be a tuple with names
        return (list if isinstance(x, list) else tuple)(map(_held, x))
    return x


def _index(index: Any) -> tuple:
    """An index as NumPy takes it. The ellipsis at its end makes a view of a single element, as on a device."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, np.ndarray | list | tuple):
            raise TypeError(f"an index must be of numbers, slices and arrays of the device, found {type(part)}")
        traffic.to_host += type(part) is ndarray and part.dtype == bool  # the shape of the result must be known
    plain = tuple(_plain(part) for part in parts)
    return plain if any(part is Ellipsis for part in plain) else (*plain, Ellipsis)


class ndarray:
    """An array of the device that is not there. Has what `cupy.ndarray` has, as far as the package uses it."""

    __slots__ = ("_held",)
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, held: np.ndarray) -> None:
        self._held = held

    shape = property(lambda self: self._held.shape)
    dtype = property(lambda self: self._held.dtype)
    ndim = property(lambda self: self._held.ndim)
    size = property(lambda self: self._held.size)
    nbytes = property(lambda self: self._held.nbytes)
    itemsize = property(lambda self: self._held.itemsize)
    strides = property(lambda self: self._held.strides)
    T = property(lambda self: ndarray(self._held.T))
    mT = property(lambda self: ndarray(self._held.mT))
    real = property(lambda self: ndarray(self._held.real))
    imag = property(lambda self: ndarray(self._held.imag))

    @property
    def flags(self) -> Any:
        """How it lies in memory. There is no `writeable`, and no `setflags`."""
        flags = self._held.flags
        return types.SimpleNamespace(
            c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata
        )

    # --- to the host

    def get(self) -> np.ndarray:
        """A copy on the host."""
        traffic.to_host += 1
        return self._held.copy()

    def item(self, *args: Any) -> Any:
        traffic.to_host += 1
        return self._held.item(*args)

    def tolist(self) -> Any:
        traffic.to_host += 1
        return self._held.tolist()

    def tobytes(self) -> bytes:
        traffic.to_host += 1
        return self._held.tobytes()

    def __bool__(self) -> bool:
        traffic.to_host += 1
        return bool(self._held)

    def __int__(self) -> int:
        traffic.to_host += 1
        return int(self._held)

    def __float__(self) -> float:
        traffic.to_host += 1
        return float(self._held)

    def __index__(self) -> int:
        traffic.to_host += 1
        return operator.index(self._held)

    def __repr__(self) -> str:
        traffic.to_host += 1
        return repr(self._held)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
        )

    def __iter__(self) -> Any:
        raise TypeError("an array of the device is not gone through element by element; index it, or fetch it first")

    def __len__(self) -> int:
        return len(self._held)

    # --- NumPy's functions, which CuPy takes over where it has them

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or not all(type(x) is ndarray or np.isscalar(x) for x in inputs):
            bad = next((type(x) for x in inputs if isinstance(x, np.ndarray)), method)
            raise TypeError(f"Unsupported type {bad}")
        return _held(ufunc(*map(_plain, inputs), **_plain(kwargs)))  # a NumPy number times an array comes here

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called on an array of the device; call that of the backend")

    # --- elements

    def __getitem__(self, index: Any) -> ndarray:
        return ndarray(self._held[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._held[_index(index)] = _plain(value)

    def fill(self, value: Any) -> None:
        self._held.fill(_plain(value))

    # --- shapes and types

    def astype(
        self, dtype: Any, order: str = "K", casting: str = "unsafe", subok: bool = True, copy: bool = True
    ) -> Any:
        found = self._held.astype(dtype, copy=copy)
        return self if found is self._held else ndarray(found)

    def nonzero(self) -> Any:
        traffic.to_host += 1
        return _held(self._held.nonzero())


def _method(name: str, known: tuple[str, ...] = ()) -> Callable:
    """The method of this name. Raises TypeError for a keyword that CuPy's has not."""
    f = getattr(np.ndarray, name)

    def call(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        for word in kwargs:
            if word not in known:
                raise TypeError(f"{name}() got an unexpected keyword argument {word!r}")
        if kwargs.get("kind") not in (None, "stable"):
            raise ValueError(f"{name}() knows the stable kind alone")
        found = f(self._held, *map(_plain, args), **_plain(kwargs))
        return kwargs["out"] if kwargs.get("out") is not None else _held(found)

    return call


REDUCTIONS = ("sum", "mean", "prod", "max", "min", "all", "any", "std", "var", "argmax", "argmin", "cumsum", "cumprod")
for _name in REDUCTIONS:
    setattr(ndarray, _name, _method(_name, ("axis", "dtype", "out", "keepdims")))
for _name in ("argsort", "sort"):
    setattr(ndarray, _name, _method(_name, ("axis", "kind")))
for _name in ("clip", "copy", "diagonal", "dot", "flatten", "ravel", "repeat", "reshape", "round", "squeeze", "swapaxes", "take",
              "trace", "transpose", "view"):  # fmt: skip
    setattr(ndarray, _name, _method(_name, ("axis", "order", "offset")))


def _operator(name: str) -> Callable:
    f = getattr(np.ndarray, name)

    def call(self: ndarray, *others: Any) -> Any:
        for other in others:
            if getattr(type(other), "__array_ufunc__", call) is None:
                return NotImplemented  # a Tensor, which knows better
        return _held(f(self._held, *map(_plain, others)))

    return call


def _in_place(name: str) -> Callable:
    f = getattr(np.ndarray, name)

    def call(self: ndarray, other: Any) -> Any:
        f(self._held, _plain(other))
        return self

    return call


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
_OTHER = ("lt", "le", "gt", "ge", "eq", "ne", "neg", "abs", "invert")
for _name in (*_BINARY, *(f"r{n}" for n in _BINARY), *_OTHER):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
for _name in _BINARY:
    setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))


# --- functions --------------------------------------------------------------------------------------------------------

# what NumPy 2 has and CuPy 14.2 has not
LACKING = """ScalarType asmatrix block bmat busday_count busday_offset busdaycalendar bytes_ char character clongdouble complex256 core
    ctypeslib datetime64 datetime_as_string datetime_data dtypes einsum_path emath errstate f2py flexible float128 frompyfunc
    fromregex geomspace get_include getbufsize geterr geterrcall histogram_bin_edges info insert is_busday isnat little_endian
    longdouble ma matrix matvec memmap nanpercentile nanquantile ndenumerate nditer nested_iters object_ polyder polydiv polyint
    rec recarray record setbufsize seterr seterrcall show_runtime spacing str_ strings test timedelta64 typecodes unstack vecdot
    vecmat void linalg.diagonal linalg.matrix_norm linalg.multi_dot linalg.outer linalg.svdvals linalg.tensordot linalg.trace
    linalg.vecdot linalg.vector_norm
    random"""  # the last CuPy has, but random numbers are drawn on the host
WAITING = """argwhere array_equal compress extract flatnonzero isin mask_indices nonzero setdiff1d tril_indices triu_indices trim_zeros
    union1d unique linalg.matrix_rank"""  # their results have a shape, or are a number, that only the device knows
SCATTERED = ("float16", "float32", "float64", "int32", "uint32", "uint64")  # dtypes that `add.at` takes


class _Function:
    """One function of NumPy on arrays of the device."""

    def __init__(self, name: str, f: Callable) -> None:
        self.name, self.f, self.waits = name, f, name in WAITING.split()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        traffic.to_host += self.waits
        found = self.f(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()})
        out = kwargs.get("out")
        return out if out is not None else _held(found)

    def at(self, a: ndarray, index: Any, b: Any = None) -> None:
        """The ufunc in place at an index, entries named twice counting twice."""
        if type(a) is not ndarray or a.dtype.name not in SCATTERED:
            raise TypeError(f"{self.name}.at takes arrays of {', '.join(SCATTERED)}, found {a.dtype}")
        self.f.at(a._held, _index(index), _plain(b))  # type: ignore[attr-defined]


class _Namespace(types.SimpleNamespace):
    """`linalg` and `fft`."""

    def __init__(self, name: str, **own: Any) -> None:
        super().__init__(_name=name, **own)

    def __getattr__(self, name: str) -> Any:
        return _found(getattr(np, self._name), f"{self._name}.{name}")


def _found(module: Any, name: str) -> Any:
    found = getattr(module, name.rpartition(".")[2], None)
    if found is None or name in LACKING.split() or name.startswith("_"):
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    return found if isinstance(found, type) or not callable(found) else _Function(name, found)


def __getattr__(name: str) -> Any:
    return _found(np, name)


def array(x: Any, dtype: Any = None, copy: bool | None = True, order: str = "K") -> ndarray:
    """An array of the device, of one that is there or of anything on the host."""
    if type(x) is ndarray:
        return ndarray(np.array(x._held, dtype, copy=copy or None))
    traffic.to_device += 1
    return ndarray(np.array(x, dtype))


def asarray(x: Any, dtype: Any = None, order: str | None = None) -> ndarray:
    """The same, x itself if it is one already."""
    return x if type(x) is ndarray and dtype in (None, x.dtype) else array(x, dtype, copy=None)


def ascontiguousarray(x: Any, dtype: Any = None) -> ndarray:
    x = asarray(x, dtype)
    return x if x.flags.c_contiguous else ndarray(x._held.copy())


def asnumpy(x: Any) -> np.ndarray:
    """A copy on the host."""
    return x.get() if type(x) is ndarray else np.asarray(x)


def where(condition: ndarray, x: Any = None, y: Any = None) -> Any:
    """x where the condition holds, y elsewhere; the condition must be an array of the device."""
    if type(condition) is not ndarray:
        raise TypeError(f"Unsupported type {type(condition)}")
    if x is None:
        return condition.nonzero()
    return _held(np.where(condition._held, _plain(x), _plain(y)))


def put_along_axis(a: ndarray, index: ndarray, values: Any, axis: int) -> None:
    np.put_along_axis(_plain(a), _plain(index), _plain(values), axis)


def argsort(a: ndarray, axis: int = -1, kind: str | None = None) -> ndarray:
    return a.argsort(axis=axis, kind=kind)  # type: ignore[attr-defined]


def _solve(a: ndarray, b: ndarray) -> ndarray:
    """NumPy's, without its broadcasting of the leading axes."""
    if b.ndim > 1 and a.shape[:-1] != b.shape[:-1]:
        raise ValueError("a must have (..., M, M) shape and b must have (..., M, K) for multidimensional b")
    return _held(np.linalg.solve(_plain(a), _plain(b)))


linalg, fft = _Namespace("linalg", solve=_solve), _Namespace("fft")


class Graph:
    """In place of a CUDA graph: a function that is called at every replay and must keep to the device. Its results stay in place.

    Raises RuntimeError, as a capture does, if something crosses between host and device.
    """

    def __init__(self, f: Callable[[], Any], pool: Any = None) -> None:
        self.f, self.pool = f, pool
        f()
        self.result = self._captured()

    def _captured(self) -> Any:
        before = (traffic.to_host, traffic.to_device)
        found = self.f()
        if (traffic.to_host, traffic.to_device) != before:
            raise RuntimeError("something crossed between host and device during stream capture")
        return found

    def __call__(self) -> None:
        _write(self.result, self._captured())


def _write(there: Any, found: Any) -> None:
    """Copy arrays, alone or in tuples and dicts, to where others lie."""
    if isinstance(there, dict):
        there, found = tuple(there.values()), tuple(found[k] for k in there)
    if isinstance(there, tuple):
        for x, y in zip(there, found, strict=True):
            _write(x, y)
    elif there is not None:
        there[...] = found


def adamw(many: Any, t: ndarray, lr: ndarray, settings: Any) -> None:
    """`minipeft.engine.fast.graph.adamw`, by NumPy."""
    o = settings
    for x, g, m, v, factor in many:
        x_, g_, m_, v_ = (a._held for a in (x, g, m, v))
        lr_, fix1, fix2 = float(lr._held) * factor, 1 - o.beta1 ** int(t._held), (1 - o.beta2 ** int(t._held)) ** 0.5
        m_[...] = o.beta1 * m_ + (1 - o.beta1) * g_
        v_[...] = o.beta2 * v_ + (1 - o.beta2) * g_ * g_
        x_[...] = (1 - lr_ * o.weight_decay) * x_ - lr_ / fix1 * m_ / (np.sqrt(v_) / fix2 + o.eps)


def erf(x: ndarray) -> ndarray:
    """The error function of every element."""
    from scipy import special

    return _held(special.erf(_plain(x)))
