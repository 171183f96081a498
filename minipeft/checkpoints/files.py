"""Reading files that nobody vouches for, and writing files that are whole or not there.

Only regular files are opened (`minipeft.checkpoints.regular`): a pipe may never end. Only safetensors are read: a pickle can run any code it likes.
A header is checked against the file's size before memory is taken. Everything is written to a temporary file beside its target and renamed, so that a full disk or a killed process
leaves what was there before.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minipeft.checkpoints.regular import checkpoint, exactly, opened, parsed, place_of, read_json
from minipeft.checkpoints.regular import existing as existing
from minipeft.checkpoints.regular import read_file as read_file
from minipeft.checkpoints.regular import read_text as read_text
from minipeft.engine.weight import Weight, factor, form, widened
from minipeft.errors import Bad, near
from minipeft.limits import AXES, HEADER_VALUES, NAME_LENGTH, TENSORS
from minipeft.shown import shortly

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # widened to float32 after reading: NumPy has no such type
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER = 100 << 20  # the format's own limit


def refuse_read(out: str | Path, *folders: str | Path) -> None:
    """Raises `Bad` if a folder to write is one of the folders that are read, under whatever name."""
    real = os.path.realpath(out)
    if any(
        real == os.path.realpath(f) or (os.path.exists(f) and os.path.exists(real) and os.path.samefile(f, real))
        for f in folders
    ):
        raise Bad(f"{out}: this is a folder that is read from; give another one to write")


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a safetensors file: {name: {dtype, shape, data_offsets}}, and "__metadata__" if it has any.

    Raises `Bad` for a pickle, a truncated file, and a header that lies: about its length, a dtype, a shape, or offsets that
    leave the file, overlap or leave gaps.
    """
    with opened(path) as (f, size):
        return header_of(Path(path), f, size)[0]


def header_of(path: Path, f: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header of a file that is open, checked, and where the numbers begin."""
    if path.suffix in PICKLES:
        raise Bad(
            f"{path}: a pickle can run any code when it is read, so it is refused; save the checkpoint as safetensors"
        )
    start = f.read(8)
    (length,) = struct.unpack("<Q", start) if len(start) == 8 else (-1,)
    fits = 0 <= length <= min(size - 8, MAX_HEADER)  # a header of 640 bytes begins with a pickle's two bytes, too
    if start[:2] in (b"\x80\x02", b"\x80\x04", b"PK") and not fits:
        raise Bad(f"{path}: this is a pickle, which can run any code when it is read; expected safetensors")
    if len(start) < 8:
        raise Bad(f"{path}: expected a safetensors file, found {size} bytes: it is truncated")
    if not fits:
        raise Bad(
            f"{path}: the header claims {length} bytes, the file has {size - 8} after its first 8: truncated or no safetensors"
        )
    raw = exactly(path, f, length)
    if raw.count(b"{") > TENSORS + NAME_LENGTH:  # braces in names and in the metadata's words apart
        raise Bad(f"{path}: the header has {raw.count(b'{'):,} objects; expected at most {TENSORS:,} tensors")
    try:
        header = parsed(raw, HEADER_VALUES)
    except Bad as why:
        raise Bad(f"{path}: the header is no safetensors file's, or damaged: {why}") from None
    if not isinstance(header, dict):
        raise Bad(f"{path}: the header is no JSON object")
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
                raise Bad(f"{path}: the header's metadata must map words to words")
            continue
        spans.append(_checked(path, name, entry))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise Bad(f"{path}: {name!r} begins at byte {begin}, expected {at}: tensors overlap or leave a gap")
        at = end
    if at != size - 8 - length:
        raise Bad(f"{path}: the tensors take {at} bytes, the file holds {size - 8 - length}: truncated or padded")
    return header, 8 + length


def _checked(path: Path, name: str, entry: Any) -> tuple[int, int, str]:
    def whole(xs: Any, n: int | None = None) -> bool:
        return isinstance(xs, list) and all(type(x) is int and x >= 0 for x in xs) and (n is None or len(xs) == n)

    if len(name) > NAME_LENGTH:
        raise Bad(f"{path}: the header has a name of {len(name):,} characters; expected at most {NAME_LENGTH:,}")
    if not isinstance(entry, dict) or not whole(entry.get("shape")) or not whole(entry.get("data_offsets"), 2):
        raise Bad(f"{path}: the header's entry for {name!r} is malformed; expected dtype, shape and data_offsets")
    if not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
        raise Bad(f"{path}: {name!r} has dtype {shortly(entry.get('dtype'))}; expected one of {', '.join(DTYPES)}")
    if len(entry["shape"]) > AXES or any(n >= 2**63 for n in entry["shape"]):
        raise Bad(f"{path}: {name!r} has shape {shortly(entry['shape'])}; expected at most {AXES} axes of 63 bits")
    begin, end = entry["data_offsets"]
    expected = math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize
    if end - begin != expected:
        raise Bad(
            f"{path}: {name!r} of shape {entry['shape']} and dtype {entry['dtype']} takes {expected} bytes, the header gives it {end - begin}"
        )
    return begin, end, name


def read_tensors(path: str | Path, dtype: Any = None, keys: Any = None) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, by name; `keys` limits them. bfloat16 becomes float32; `dtype` converts floats.

    Raises `Bad` as `read_header` does, and for keys that are not there.
    """
    path = Path(path)
    with opened(path) as (f, size):
        header, start = header_of(path, f, size)
        names = [n for n in header if n != "__metadata__"]
        for k in keys or ():
            if k not in header or k == "__metadata__":
                raise Bad(f"{path}: no tensor {k!r}{near(k, names)}")
        names = names if keys is None else list(keys)
        spans = {name: header[name]["data_offsets"] for name in names}
        if (needed := sum(end - begin for begin, end in spans.values())) > (memory := _memory()):
            raise Bad(f"{path}: its tensors take {needed:,} bytes, this machine has {memory:,}")
        out = {}
        for name in sorted(names, key=spans.__getitem__):
            begin, end = spans[name]
            f.seek(start + begin)
            a = _array(f"{path}: {name!r}", header[name], exactly(path, f, end - begin))
            if header[name]["dtype"] == "BF16":
                a = (a.astype(np.uint32) << 16).view(np.float32)
            out[name] = a.astype(dtype, copy=False) if dtype is not None and a.dtype.kind == "f" else a
    return out


def _array(what: str, entry: Mapping[str, Any], data: bytearray) -> np.ndarray:
    a = np.frombuffer(data, np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<")).reshape(entry["shape"])
    if entry["dtype"] == "BOOL" and (a.view(np.uint8) > 1).any():
        raise Bad(f"{what} is of BOOL and has bytes that are neither 0 nor 1")
    return a


def _memory() -> int:
    """Bytes of memory that this machine has; without end where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


def read_folder(
    folder: str | Path, read: Callable[[Path], dict[str, Any]] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and all tensors of a checkpoint folder: model.safetensors, or the shards its index names.

    Raises `Bad` for what is missing, for pickles, for shards outside of the folder or that disagree with the index, and for
    NaN or infinite weights. `read` gives the tensors of a file; what it maps into memory is checked when it is used.
    """
    read = read or read_tensors
    folder = checkpoint(folder)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise Bad(f"{folder / 'config.json'}: expected an object, found {type(config).__name__}")
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        tensors = read(single)
    elif index.exists():
        tensors = _read_shards(folder, index, read)
    else:
        found = sorted(p.name for p in folder.iterdir())
        if pickles := [n for n in found if n.endswith(PICKLES)]:
            raise Bad(
                f"{folder}: found only {pickles[0]}, a pickle, which can run any code when it is read; save the model as safetensors"
            )
        raise Bad(
            f"{folder}: expected model.safetensors or model.safetensors.index.json, found {', '.join(found[:20]) or 'nothing'}{', …' if len(found) > 20 else ''}"
        )
    for name, a in tensors.items():
        if not isinstance(a, Weight) and a.dtype.kind == "f" and not (finite := np.isfinite(a)).all():
            raise Bad(f"{folder}: {name} has {int((~finite).sum())} of {a.size} weights that are NaN or infinite")
    return config, tensors


def _read_shards(folder: Path, index: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    about = read_json(index)
    where = about.get("weight_map") if isinstance(about, dict) else None
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise Bad(f"{index}: expected a weight_map from tensor names to files")
    if len(where) > TENSORS:
        raise Bad(f"{index}: expected at most {TENSORS:,} tensors, found {len(where):,}")
    shards: dict[str, set[str]] = {}
    for name, shard in where.items():
        shards.setdefault(shard, set()).add(name)
    for shard in shards:
        if shard in ("", "..") or "\0" in shard or Path(shard).name != shard:
            raise Bad(f"{index}: names the file {shortly(shard)}, which is outside of the folder")
    tensors: dict[str, Any] = {}
    for shard, expected in sorted(shards.items()):
        held = read(folder / shard)
        if lost := sorted(expected ^ set(held)):
            raise Bad(f"{folder / shard}: disagrees with the index about {len(lost)} tensors, the first {lost[0]}")
        tensors |= held
    return tensors


# --- writing --------------------------------------------------------------------------------------------------------


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises `Bad` if the disk is full, or the place cannot be written to or holds what is no file."""
    path = place_of(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as why:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise Bad(f"{path}: cannot be written: {why.strerror or why}; what was there is unchanged") from None
    except BaseException:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise


def place_folder(folder: Path, out: Path) -> None:
    """Give a finished folder its name; what had that name goes when the new one stands. Raises `Bad` if the place cannot be written to."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)) / "old"
            os.rename(out, old)
            os.rename(folder, out)
            shutil.rmtree(old.parent)
        else:
            os.rename(folder, out)
    except OSError as why:
        raise Bad(f"{out}: cannot be written: {why.strerror or why}") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, keys sorted."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays as safetensors: the same arrays give the same bytes. Raises `Bad` for a dtype the format has not.

    What is held in bfloat16 is written so, bit by bit. `metadata` has one entry at most, since the library does not fix
    the order of several.
    """
    if metadata is not None and len(metadata) > 1:
        raise ValueError("one metadata entry at most; put several into one as JSON")
    halves = [name for name, a in tensors.items() if form(a) == "bfloat16"]
    plain = {name: factor(a).values if form(a) == "bfloat16" else widened(a) for name, a in tensors.items()}
    held = {name: np.ascontiguousarray(plain[name]) for name in sorted(plain)}
    for name, a in held.items():
        if a.dtype not in {np.dtype(t) for t in DTYPES.values()}:
            raise Bad(f"{path}: {name} has dtype {a.dtype}, which safetensors cannot hold")
        held[name] = a.reshape(np.shape(plain[name]))  # ascontiguousarray makes scalars vectors
    from safetensors.numpy import save

    data = save(held, dict(metadata) if metadata else None)
    write_bytes(path, _as_bfloat16(data, halves) if halves else data)


def _as_bfloat16(data: bytes, names: list[str]) -> bytes:
    """A file that says of these tensors, whose bits the library took for U16, that they are BF16."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for name in names:
        header[name]["dtype"] = "BF16"
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((struct.pack("<Q", len(text)), text, memoryview(data)[8 + length :]))
