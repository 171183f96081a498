"""Damage to files: of bytes, of JSON, of safetensors that stay consistent or do not, of folders. Everything is drawn."""

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# --- bytes --------------------------------------------------------------------------------------------------------------

PIECES = [b"\0", b"\n", b"\r", b'"', b",", b"{", b"}", b"[", b"]", b"\\", b"\xff", b"\xef\xbb\xbf", b"\x1b[31m", b"#", b"=",
          b"NaN", b"0", b"-", b"\xe2\x80\xae", b"\x00" * 64, b"[" * 5000, b"9" * 5000]  # fmt: skip


def flipped(data: bytes, rng: Any) -> tuple[bytes, str]:
    at, bit = int(rng.integers(len(data))), int(rng.integers(8))
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :], f"bit {bit} of byte {at} flipped"


def cut(data: bytes, rng: Any) -> tuple[bytes, str]:
    at = int(rng.integers(len(data)))
    return data[:at], f"cut after {at} of {len(data)} bytes"


def appended(data: bytes, rng: Any) -> tuple[bytes, str]:
    piece = PIECES[rng.integers(len(PIECES))]
    return data + piece, f"{piece[:8]!r} appended"


def inserted(data: bytes, rng: Any) -> tuple[bytes, str]:
    at, piece = int(rng.integers(len(data) + 1)), PIECES[rng.integers(len(PIECES))]
    return data[:at] + piece + data[at:], f"{piece[:8]!r} × {len(piece)} inserted at {at}"


def _span(data: bytes, rng: Any) -> tuple[int, int]:
    at = int(rng.integers(len(data)))
    return at, min(len(data), at + int(rng.integers(1, 65)))


def doubled(data: bytes, rng: Any) -> tuple[bytes, str]:
    at, end = _span(data, rng)
    return data[:end] + data[at:end] + data[end:], f"bytes {at}–{end} twice"


def zeroed(data: bytes, rng: Any) -> tuple[bytes, str]:
    at, end = _span(data, rng)
    return data[:at] + bytes(end - at) + data[end:], f"bytes {at}–{end} zeroed"


BYTES = (flipped, flipped, cut, appended, inserted, inserted, doubled, zeroed)


# --- JSON ---------------------------------------------------------------------------------------------------------------

DEEP, TWICE = "the deep list", "the key again "  # stand-ins for what `json.dumps` writes no text of
ODD = [None, True, False, "", "text", -1, 0, 1, 2, 3, 0.5, -0.5, 1e308, 1e-308, 10**7, 10**9, 2**31, 2**63, 10**400, math.nan, math.inf, [], {},
       [None], [1, 2], {"a": 1}, DEEP, "a\nb\x1b[31m", "\ud800", "<script>alert(1)</script>[red]", "(a+)+$", "x" * 3000, "../../etc/passwd"]  # fmt: skip


def text_of(value: Any) -> bytes:
    """JSON with the stand-ins replaced."""
    text = json.dumps(value, indent=1, ensure_ascii=True).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)
    return text.replace(f'"{TWICE}', '"').encode()


def _place(value: Any, rng: Any) -> tuple[Any, Any]:
    """(container, key) of a value somewhere inside, sooner near the top."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[rng.integers(len(keys))]
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.3:
            return value, key
        value = inner


def _renamed(key: str, rng: Any) -> str:
    at = int(rng.integers(len(key) + 1))
    kinds = [
        key[:at] + key[at + 1 :],
        key[:at] + "x" + key[at:],
        key[: at - 1] + key[at:][:1] + key[at - 1 : at] + key[at + 1 :],
    ]
    return kinds[rng.integers(3)]


def in_json(value: Any, rng: Any) -> str:
    """Change a JSON value at one place, in place; says how."""
    holder, key = _place(value, rng)
    told, old = f"{key!r}", holder[key]
    how = int(rng.integers(10))
    if how < 4:
        holder[key] = odd = ODD[rng.integers(len(ODD))]
        return f"{told}: {_short(odd)} for {_short(old)}"
    if how == 4:
        del holder[key]
        return f"{told} removed"
    if how == 5 and isinstance(holder, dict):
        holder[TWICE + key] = odd = ODD[rng.integers(len(ODD))] if rng.random() < 0.7 else old
        return f"{told} again, as {_short(odd)}"
    if how == 6 and isinstance(holder, dict) and key:
        new = _renamed(key, rng)
        pairs = [(new if k == key else k, v) for k, v in holder.items()]
        holder.clear()
        holder.update(pairs)
        return f"{told} renamed {new!r}"
    if how == 7:
        odd = ODD[rng.integers(len(ODD))]
        if isinstance(holder, dict):
            name = ["added", "format", "", "__class__", "é\n", "_"][rng.integers(6)]
            holder[name] = odd
            return f"{name!r} added: {_short(odd)}"
        holder.insert(key, old)
        return f"element {key} twice"
    if how == 8:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        other = keys[rng.integers(len(keys))]
        holder[key], holder[other] = holder[other], holder[key]
        return f"values of {told} and {other!r} swapped"
    if isinstance(old, str) and old:
        holder[key] = _renamed(old, rng)
        return f"{told}: {holder[key][:40]!r} for {_short(old)}"
    if isinstance(old, list) and len(old) > 1:
        rng.shuffle(old)
        return f"{told} shuffled"
    if type(old) is int or (type(old) is float and math.isfinite(old)):
        holder[key] = new = old + [1, -1, old, -2 * old][rng.integers(4)]
        return f"{told}: {new} for {old}"
    if type(old) is bool:
        holder[key] = not old
        return f"{told}: {not old} for {old}"
    holder[key] = None
    return f"{told}: None for {_short(old)}"


def _short(x: Any) -> str:
    if isinstance(x, int) and abs(x) > 1e20:
        return "10**400"
    return repr(x) if len(repr(x)) < 40 else repr(x)[:37] + "…"


def of_json(data: bytes, rng: Any) -> tuple[bytes, str] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None  # an earlier mutation broke it
    if not isinstance(value, dict | list) or not value:
        return None
    if rng.random() < 0.03:
        odd = ODD[rng.integers(len(ODD))]
        return text_of(odd), f"all of it is {_short(odd)}"
    told = in_json(value, rng)
    return text_of(value), told


# --- safetensors --------------------------------------------------------------------------------------------------------

SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8",
         "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}  # fmt: skip


def parsed(data: bytes) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Tensors {name: [dtype, shape, bytes]}, and metadata; None for what is no safetensors file any more."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        about = header.pop("__metadata__", {})
        at = 8 + length
        tensors = {
            k: [e["dtype"], e["shape"], data[at + e["data_offsets"][0] : at + e["data_offsets"][1]]]
            for k, e in header.items()
        }
        known = all(
            d in SIZES and max(s, default=0) < 10**6 and len(b) == math.prod(s) * SIZES[d]
            for d, s, b in tensors.values()
        )
        return (tensors, about) if known else None
    except (struct.error, ValueError, AttributeError, TypeError, KeyError, RecursionError, MemoryError):
        return None


def headed(tensors: dict[str, Any], about: Any) -> tuple[dict[str, Any], bytes]:
    """A header that fits the tensors, and the data."""
    header: dict[str, Any] = {"__metadata__": about} if about else {}
    at, blocks = 0, []
    for k, (dtype, shape, block) in tensors.items():
        header[k] = dict(dtype=dtype, shape=shape, data_offsets=[at, at + len(block)])
        at += len(block)
        blocks.append(block)
    return header, b"".join(blocks)


def filed(header: Any, data: bytes) -> bytes:
    text = text_of(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def array(entry: Any) -> np.ndarray:
    return np.frombuffer(entry[2], NUMPY[entry[0]]).reshape(entry[1])


def _put(entry: Any, a: np.ndarray, dtype: str | None = None) -> None:
    entry[0] = dtype or entry[0]
    entry[1], entry[2] = list(a.shape), np.ascontiguousarray(a.astype(NUMPY[entry[0]])).tobytes()


def _values(entry: Any, rng: Any) -> str:
    """Other numbers of the same shape and dtype; all of them, or one."""
    old = array(entry)
    a = old.copy()
    if entry[0] in ("F64", "F32", "F16"):
        new, told = [
            (0.0, "zeros"),
            (math.nan, "NaN"),
            (math.inf, "inf"),
            (np.finfo(a.dtype).max, "huge"),
            (None, "random"),
        ][rng.integers(5)]
    elif entry[0] == "BF16":
        new, told = [(0, "zeros"), (0x7FC0, "NaN"), (0x7F80, "inf"), (0x7F7F, "huge"), (None, "random")][
            rng.integers(5)
        ]
    elif entry[0] == "BOOL":
        new, told = bool(rng.integers(2)), "one value"
    else:
        about = np.iinfo(a.dtype)
        ends = [
            (0, "zeros"),
            (about.max, "the largest"),
            (about.min, "the smallest"),
            (1, "ones"),
            (None, "random"),
            (int(min(a.size, about.max)), "its size"),
        ]
        new, told = ends[rng.integers(6)]
    drawn: Any = new
    if new is None and a.dtype.kind == "f":
        drawn = rng.standard_normal(a.shape)
    elif new is None:
        drawn = rng.integers(0, max(2, min(int(a.max(initial=1)) + 1, 2**31)), a.shape)
    if rng.random() < 0.5 and a.size:
        at = int(rng.integers(a.size))
        a.flat[at] = np.asarray(drawn).flat[at] if new is None else new
        told = f"number {at}: {told}"
    else:
        a[...] = drawn
    _put(entry, a)
    return told


def _shape(entry: Any, rng: Any) -> str:
    """Another shape of as many numbers."""
    a = array(entry)
    options = [
        a.T,
        a.reshape(-1),
        a[None],
        a[..., None],
        a.reshape(*a.shape[:1][::-1], -1) if a.size and a.ndim else a,
        a.reshape(1, -1),
    ]
    if a.ndim == 2 and a.shape[0] % 2 == 0:
        options.append(a.reshape(a.shape[0] // 2, -1) if a.size else a)
    new = options[rng.integers(len(options))]
    told = f"shape {list(new.shape)} for {list(a.shape)}"
    _put(entry, new)
    return told


def _size(entry: Any, rng: Any) -> str:
    """More or fewer numbers, consistently."""
    a = array(entry)
    if a.ndim == 0:
        _put(entry, np.broadcast_to(a, (3,)))
        return "a vector for a scalar"
    axis = int(rng.integers(a.ndim))
    options = [a[:0], np.take(a, range(max(0, a.shape[axis] - 1)), axis), np.concatenate([a, a], axis),
               np.concatenate([a, np.zeros_like(np.take(a, range(min(1, a.shape[axis])), axis))], axis)]  # fmt: skip
    new = options[rng.integers(4)]
    told = f"shape {list(new.shape)} for {list(a.shape)}"
    _put(entry, new)
    return told


def _label(entry: Any, rng: Any) -> str:
    """Another dtype of the same size, or the same numbers in another dtype."""
    if rng.random() < 0.5:
        same = [d for d in SIZES if SIZES[d] == SIZES[entry[0]] and d != entry[0]]
        new, old = same[rng.integers(len(same))], entry[0]
        entry[0] = new
        return f"relabelled {new}, was {old}"
    others = [d for d in NUMPY if d not in ("BF16", entry[0])]
    new, old = others[rng.integers(len(others))], entry[0]
    with np.errstate(all="ignore"):
        _put(entry, array(entry), new)
    return f"numbers in {new}, were in {old}"


def of_tensors(data: bytes, rng: Any) -> tuple[bytes, str] | None:
    """A file whose header and data fit each other, but not what was saved."""
    found = parsed(data)
    if not found or not found[0]:
        return None
    tensors, about = found
    names = list(tensors)
    k, other = (names[i] for i in rng.integers(len(names), size=2))
    how = int(rng.integers(12))
    if how == 0:
        del tensors[k]
        told = "removed"
    elif how == 1:
        new = _renamed(k, rng)
        tensors = {new if n == k else n: e for n, e in tensors.items()}
        told = f"renamed {new!r}"
    elif how == 2:
        new = [_renamed(k, rng), "added", other + ".", "x" * 5000, "a\nb\x1b[31m"][rng.integers(5)]
        tensors[new] = list(tensors[k])
        told = f"copied to {new[:40]!r}"
    elif how == 3:
        same = [n for n in names if tensors[n][:2] == tensors[k][:2] and n != k]
        other = same[rng.integers(len(same))] if same else other
        tensors[k], tensors[other] = tensors[other], tensors[k]
        told = f"swapped with {other}"
    elif how == 4:
        if about and rng.random() < 0.7:
            word = list(about)[rng.integers(len(about))]
            inner = (
                of_json(about[word].encode(), rng)
                if isinstance(about[word], str) and about[word].startswith("{")
                else None
            )
            if inner:
                about[word], told = inner[0].decode(), f"metadata {word}: {inner[1]}"
            else:
                told = f"metadata: {in_json(about, rng)}"
        else:
            about = {**about, "added": "text"}
            told = "metadata added"
        k = "the header"
    elif (
        how == 5 and tensors[k][0] == "U8" and tensors[k][2].startswith(b"{") and (inner := of_json(tensors[k][2], rng))
    ):
        _put(tensors[k], np.frombuffer(inner[0], np.uint8))
        told = f"its JSON: {inner[1]}"
    elif how == 6:
        tensors = {n: tensors[n] for n in rng.permutation(names)}
        k, told = "the tensors", "in another order"
    else:
        told = (_values, _values, _shape, _size, _label)[rng.integers(5)](tensors[k], rng)
    return filed(*headed(tensors, about)), f"{k}: {told}"


def of_header(data: bytes, rng: Any) -> tuple[bytes, str] | None:
    """A header that lies."""
    found = parsed(data)
    if not found or not found[0]:
        return None
    header, block = headed(*found)
    names = [n for n in header if n != "__metadata__"]
    k = names[rng.integers(len(names))]
    entry = header[k]
    how = int(rng.integers(8))
    if how == 0:
        odd = [10**12, 2**63, 2**64, -1, 1.5, 10**400, "4", None, [1], True][rng.integers(10)]
        entry["shape"] = [odd, *entry["shape"][1:]] if rng.random() < 0.6 else [odd, 0] if rng.random() < 0.5 else odd
        told = f"{k}: shape {_short(entry['shape'])}"
    elif how == 1:
        entry["data_offsets"] = [[0, 2**63], [-8, 0], [8, 0], [0], [0, 0], [10**400, 10**400], None, [1.0, 2.0]][
            rng.integers(8)
        ]
        told = f"{k}: offsets {_short(entry['data_offsets'])}"
    elif how == 2:
        entry["dtype"] = ["F8_E4M3", "X", None, 5, "f32", "C64", ["F32"]][rng.integers(7)]
        told = f"{k}: dtype {entry['dtype']!r}"
    elif how == 3:
        length = [0, 1, len(data), 2**32, 2**63, 2**64 - 1, 10**8][rng.integers(7)]
        return struct.pack("<Q", length) + data[8:], f"the header's length: {length}"
    elif how == 4 and rng.random() < 0.01:
        header |= {f"{n}": dict(dtype="U8", shape=[0], data_offsets=[0, 0]) for n in range(10**6)}
        told = "a million empty tensors"
    elif how == 4:
        header |= {f"{n}": dict(dtype="U8", shape=[0, 10**15], data_offsets=[len(block)] * 2) for n in range(100)}
        told = "a hundred empty tensors"
    elif how == 5:
        block = block + bytes(8) if rng.random() < 0.5 else block[: int(rng.integers(len(block) + 1))]
        told = f"{len(block)} bytes of data"
    elif how == 6:
        header[TWICE + k] = dict(entry)
        told = f"{k} twice"
    else:
        told = in_json(header, rng)
    return filed(header, block), told


# --- folders ------------------------------------------------------------------------------------------------------------

GONE, FOLDER, LOOP, FIFO, LOCKED = "gone", "a folder", "a link to itself", "a FIFO", "a link to nothing"


def put(path: Path, what: Any) -> None:
    """Write a file's bytes, or what stands in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif what == FOLDER:
        path.mkdir()
    elif what == LOOP:
        path.symlink_to(path.name)
    elif what == LOCKED:
        path.symlink_to("nowhere")
    elif what == FIFO:
        os.mkfifo(path)


def of_folder(files: dict[str, Any], name: str, rng: Any) -> str:
    how = rng.random()
    if how < 0.02:
        files[name] = FIFO
    elif how < 0.25:
        files[name] = b""
    elif how < 0.45 and len(files) > 1:
        other = list(files)[rng.integers(len(files))]
        files[name], files[other] = files[other], files[name]
        return f"swapped with {other}"
    elif how < 0.55:
        files[name + ".bak"] = files[name]
        return "copied beside it"
    elif how < 0.65:
        files[name] = [LOOP, LOCKED][rng.integers(2)]
    else:
        files[name] = [GONE, GONE, FOLDER][rng.integers(3)]
    return "empty" if files[name] == b"" else files[name]


# --- one file -----------------------------------------------------------------------------------------------------------


def mutated(before: dict[str, bytes], rng: Any) -> tuple[dict[str, Any], list[str]]:
    """The files with one to three mutations, and what they were; may be none, where none of those drawn applied."""
    files: dict[str, Any] = dict(before)
    told = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))):
        name = list(files)[rng.integers(len(files))]
        data = files[name]
        if not isinstance(data, bytes):
            continue
        if rng.random() < 0.04:
            told.append(f"{name}: {of_folder(files, name, rng)}")
            continue
        if not data:
            continue
        own: list[Callable[..., Any]] = []
        if name.endswith(".json"):
            own = [of_json]
        elif name.endswith(".safetensors"):
            own = [of_tensors, of_tensors, of_header]
        of = own[rng.integers(len(own))] if own and rng.random() < 0.75 else BYTES[rng.integers(len(BYTES))]
        try:
            found = of(data, rng)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error):
            continue  # an earlier one broke what this one changes
        if found is not None:
            files[name] = found[0]
            told.append(f"{name}: {found[1]}")
    return files, told
