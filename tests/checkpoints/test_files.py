import errno
import json
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minipeft.checkpoints import files
from minipeft.checkpoints.files import read_folder, read_header, read_json, read_tensors, write_json, write_tensors
from minipeft.errors import Bad

GOOD = {
    "a": dict(dtype="F32", shape=[2, 3], data_offsets=[0, 24]),
    "b": dict(dtype="I64", shape=[2], data_offsets=[24, 40]),
}


def raw(header, data=bytes(40), length=None):
    """A safetensors file, byte by byte as the format says: length of the header, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def refused(path, content, says=None):
    path.write_bytes(content)
    for read in (read_header, read_tensors):
        with pytest.raises(Bad, match=says) as caught:
            read(path)
        assert "\n" not in str(caught.value) and path.name in str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_file_written_by_hand_is_read(path):
    data = np.arange(6, dtype="<f4").tobytes() + np.array([7, -8], "<i8").tobytes()
    path.write_bytes(raw(GOOD | {"__metadata__": {"format": "pt"}}, data))
    held = read_tensors(path)
    assert held["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and held["b"].tolist() == [7, -8]
    assert (held["a"].dtype, held["b"].dtype) == (np.float32, np.int64)
    assert read_tensors(path, dtype=np.float64)["a"].dtype == np.float64
    assert list(read_tensors(path, keys=["b"])) == ["b"]
    with pytest.raises(Bad, match=r"no tensor 'aa' \(did you mean a\?\)"):
        read_tensors(path, keys=["aa"])


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 20, -41, -40, -39, -1])
def test_truncated(path, length):
    refused(path, raw(GOOD)[:length], "truncated|no JSON")


@pytest.mark.parametrize("length", [0, 5, 10**6, 2**31, 2**40, 2**63, 2**64 - 1])
def test_the_header_lies_about_its_length(path, length):
    refused(path, raw(GOOD, length=length))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("b", dict(data_offsets=[20, 36]), "'b' begins at byte 20, expected 24: tensors overlap or leave a gap"),
        ("b", dict(data_offsets=[28, 44]), "overlap or leave a gap"),
        ("b", dict(data_offsets=[0, 16]), "overlap"),
        ("a", dict(data_offsets=[-24, 0]), "malformed"),
        ("a", dict(data_offsets=[24, 0]), "takes 24 bytes, the header gives it -24"),
        ("a", dict(data_offsets=[0]), "malformed"),
        ("a", dict(data_offsets=[0.0, 24.0]), "malformed"),
        ("a", dict(data_offsets=None), "malformed"),
        ("b", dict(data_offsets=[10**30, 10**30 + 16]), "leave a gap"),
        ("a", dict(shape=[2, 4]), r"of shape \[2, 4\] and dtype F32 takes 32 bytes, the header gives it 24"),
        ("a", dict(shape=[2**62, 2**62]), "takes"),
        ("a", dict(shape=[-2, -3]), "malformed"),
        ("a", dict(shape=[True, 6]), "malformed"),
        ("a", dict(shape="23"), "malformed"),
        ("a", dict(dtype="F33"), "'a' has dtype 'F33'; expected one of F64"),
        ("a", dict(dtype=["F32"]), "has dtype"),
        ("a", dict(dtype=None), "has dtype"),
        ("a\nb", dict(dtype="F32", shape=[1]), "malformed"),
    ],
)
def test_the_header_lies(path, name, change, says):
    refused(path, raw(GOOD | {name: GOOD.get(name, {}) | change}), says)


def test_a_huge_shape_of_nothing(path):
    empty = dict(dtype="F32", data_offsets=[0, 0])
    for shape in ([2**70, 0], [2**63, 2**63, 0]):
        path.write_bytes(raw({"x": empty | dict(shape=shape)}, b""))
        with pytest.raises(Bad):
            read_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b"", b"{", b"[]", b"null", b"3", b"\xff\xfe{}", b"not json", b"[" * 100_000, b'{"a":' * 50_000,
        b'{"a": 1e5}', b'{"a": []}', b'{"a": null}', b'{"a": NaN}', b'{"__metadata__": {"x": 1}}', b'{"__metadata__": []}',
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 40]}}',
        b"\x80\x04" + bytes(100), b"PK\x03\x04",
    ],
    ids=range(18),
)  # fmt: skip
def test_headers_that_are_none(path, header):
    refused(path, raw(header))


def test_a_tensor_named_twice(path):
    one = b'"a": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}'
    refused(path, raw(b"{" + one + b"," + one + b"}"), "names 'a' twice")
    refused(path, raw(b'{"a": {"dtype": "F32", "dtype": "F64", "shape": [10], "data_offsets": [0, 40]}}'), "twice")


def test_trailing_bytes(path):
    refused(path, raw(GOOD, bytes(41)), "take 40 bytes, the file holds 41")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.integers(-5, 50) | st.integers(-(2**70), 2**70) | JUNK
ENTRY = st.fixed_dictionaries(
    dict(
        dtype=st.sampled_from([*files.DTYPES, "F8_E4M3"]) | JUNK,
        shape=st.lists(NUMBERS, max_size=3) | JUNK,
        data_offsets=st.lists(NUMBERS, min_size=2, max_size=2) | JUNK,
    )
)


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "", "__metadata__", "ü\n"]), ENTRY | JUNK, max_size=3) | JUNK,
    st.binary(max_size=48),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_no_header_gets_anything_but_bad_out_of_it(tmp_path_factory, header, data, length):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(raw(header, data, length))
    try:
        held = read_tensors(path)
    except Bad as why:
        assert "\n" not in str(why)
    else:
        assert sum(a.nbytes for a in held.values()) <= 2 * len(data)  # bfloat16 is widened


@settings(max_examples=150)
@given(st.data())
def test_no_damage_gets_anything_but_bad_out_of_it(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    content = bytearray(raw(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 41))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        held = read_tensors(path)
    except Bad as why:
        assert "\n" not in str(why)
    else:
        assert sum(a.nbytes for a in held.values()) == 40


def test_a_lie_costs_no_memory(path):
    big = {"a": dict(dtype="F64", shape=[2**40], data_offsets=[0, 2**43])}
    path.write_bytes(raw(big))
    tracemalloc.start()
    for content in (raw(big), raw(big, length=2**62), raw(GOOD, length=90 << 20)):
        refused(path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_a_pickle_by_its_name(tmp_path, name):
    refused(tmp_path / name, b"anything", "a pickle can run any code when it is read")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_under_another_name(path, protocol):
    class Trap:
        def __reduce__(self):
            return (os.abort, ())  # would end the test run

    refused(path, pickle.dumps(Trap(), protocol), "this is a pickle, which can run any code")


def test_a_zipped_pickle(path):
    refused(path, b"PK\x03\x04" + bytes(99), "this is a pickle")


def test_what_is_not_there(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {})
    with pytest.raises(Bad, match=r"modle.safetensors: no such file \(did you mean model.safetensors\?\)"):
        read_header(tmp_path / "modle.safetensors")
    with pytest.raises(Bad, match=r"no such file$"):
        read_header(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(Bad, match="expected a file, found a folder"):
        read_tensors(tmp_path)
    with pytest.raises(Bad, match="expected a file, found a folder"):
        read_json(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_no_json(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(Bad, match="expected JSON"):
        read_json(tmp_path / "x.json")


# --- folders ----------------------------------------------------------------------------------------------------------


def sharded(folder, where=None, config="{}"):
    """Two shards: a and b in the first, c in the second."""
    write_tensors(folder / "one.safetensors", {"a": np.zeros(2), "b": np.ones(3)})
    write_tensors(folder / "two.safetensors", {"c": np.full(1, 2.0)})
    (folder / "config.json").write_text(config)
    if where is None:
        where = dict(a="one.safetensors", b="one.safetensors", c="two.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": where} if isinstance(where, dict) else where)


def test_shards_are_put_together(tmp_path):
    sharded(tmp_path, config='{"d": 3}')
    config, held = read_folder(tmp_path)
    assert config == {"d": 3} and {k: v.tolist() for k, v in held.items()} == {"a": [0, 0], "b": [1, 1, 1], "c": [2]}


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (dict(a="one.safetensors", b="one.safetensors", c="tow.safetensors"), "tow.safetensors: no such file .*two"),
        (dict(a="one.safetensors", c="two.safetensors"), "one.safetensors: disagrees with the index about 1 tensors, the first b"),
        (dict(a="one.safetensors", b="one.safetensors", c="two.safetensors", d="two.safetensors"), "the first d"),
        (dict(a="../one.safetensors"), "'../one.safetensors', which is outside of the folder"),
        (dict(a="/etc/passwd"), "outside of the folder"),
        (dict(a=".."), "outside of the folder|cannot be read"),
        (dict(a=""), "outside of the folder|cannot be read"),
        (dict(a="model.bin"), "no such file|a pickle"),
        (dict(a=3), "expected a weight_map"),
        ([], "expected a weight_map"),
        ({"weight_map": {"weight_map": []}}["weight_map"], "expected a weight_map"),
    ],
)  # fmt: skip
def test_an_index_that_lies(tmp_path, where, says):
    folder = tmp_path / "model"
    folder.mkdir()
    sharded(folder, where)
    write_tensors(tmp_path / "one.safetensors", {"a": np.zeros(2)})
    with pytest.raises(Bad, match=says) as caught:
        read_folder(folder)
    assert "\n" not in str(caught.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(Bad, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(Bad, match="expected a checkpoint folder, found a file"):
        read_folder(tmp_path / "file")
    with pytest.raises(Bad, match=r"config\.json: no such file"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(Bad, match="expected an object, found list"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Bad, match=r"expected model.safetensors .*, found config.json, file"):
        read_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(Bad, match=r"found only pytorch_model.bin, a pickle, which can run any code"):
        read_folder(tmp_path)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_that_are_no_numbers(tmp_path, poison, dtype):
    (tmp_path / "config.json").write_text("{}")
    W = np.ones((2, 3), dtype)
    W[1, 2] = poison
    write_tensors(tmp_path / "model.safetensors", {"fine": np.ones(2, dtype), "W": W})
    with pytest.raises(Bad, match="W has 1 of 6 weights that are NaN or infinite"):
        read_folder(tmp_path)


# --- writing ----------------------------------------------------------------------------------------------------------

KINDS = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8, np.bool_]  # fmt: skip
ARRAYS = st.sampled_from(KINDS).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda n: n != "__metadata__"), ARRAYS, max_size=3))
def test_what_is_written_is_read(tmp_path_factory, arrays):
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    write_tensors(path, arrays, {"format": "x"})
    held = read_tensors(path)
    assert set(held) == set(arrays)
    for k, a in arrays.items():
        assert held[k].dtype == a.dtype and held[k].shape == a.shape and held[k].tobytes() == a.tobytes()
    once = path.read_bytes()
    write_tensors(path, dict(reversed(arrays.items())), {"format": "x"})
    assert path.read_bytes() == once


def test_other_layouts_are_written_as_they_read(path):
    a = np.arange(24.0).reshape(2, 3, 4)
    write_tensors(path, {"turned": a.T, "every second": a[:, ::2], "scalar": np.float32(3)})
    held = read_tensors(path)
    assert (held["turned"] == a.T).all() and (held["every second"] == a[:, ::2]).all() and held["scalar"].shape == ()


BITS = {0x3F80: 1.0, 0xC000: -2.0, 0x3E80: 0.25, 0x4049: 3.140625, 0x0000: 0.0, 0x0001: 2.0**-133, 0x7F7F: (2 - 2**-7) * 2.0**127}  # fmt: skip


def test_bfloat16_is_widened(path):
    header = {"x": dict(dtype="BF16", shape=[len(BITS)], data_offsets=[0, 2 * len(BITS)])}
    path.write_bytes(raw(header, struct.pack(f"<{len(BITS)}H", *BITS)))
    held = read_tensors(path)["x"]
    assert held.dtype == np.float32 and held.tolist() == list(BITS.values())
    assert read_tensors(path, dtype=np.float64)["x"].tolist() == list(BITS.values())


@pytest.mark.hf
def test_torch_reads_what_we_write_and_we_what_it_writes(path):
    import torch
    from safetensors.torch import load_file, save_file

    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for kind in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        save_file({"x": x.to(kind)}, path)
        held = read_tensors(path)["x"]
        assert (held == x.to(kind).to(torch.float32 if kind == torch.bfloat16 else kind).numpy()).all()
        write_tensors(path, {"x": held})
        assert (load_file(path)["x"].numpy() == held).all()


def test_what_the_format_cannot_hold(path):
    for a in (np.zeros(2, complex), np.zeros(2, object), np.array(["x"]), np.zeros(2, ">f4")):
        with pytest.raises(Bad, match=r"x has dtype .*, which safetensors cannot hold"):
            write_tensors(path, {"x": a})
    assert not path.exists()


class Full:
    """A file on a full disk: takes the first bytes and no more."""

    def __init__(self, handle, error):
        self.inner, self.error = open(handle, "wb"), error  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.inner.close()

    def write(self, data):
        self.inner.write(data[:5])
        raise self.error


@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize(
    ("error", "seen"),
    [(OSError(errno.ENOSPC, "No space left on device"), Bad), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["full", "interrupted"],
)
def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path, monkeypatch, before, error, seen):
    path = tmp_path / "x.safetensors"
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(files.os, "fdopen", lambda handle, mode: Full(handle, error))
    with pytest.raises(seen) as caught:
        write_tensors(path, {"x": np.zeros(9)})
    if seen is Bad:
        assert str(caught.value) == f"{path}: cannot be written: No space left on device; what was there is unchanged"
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else [path.name])
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_at_its_end(tmp_path, monkeypatch, step):
    path = tmp_path / "x.json"
    write_json(path, [1])

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, step, fails)
    with pytest.raises(Bad, match="cannot be written: Input/output error"):
        write_json(path, [2])
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"] and json.loads(path.read_text()) == [1]


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Bad, match="cannot be written"):
        write_json(tmp_path / "file" / "x.json", 1)
    write_json(tmp_path / "new" / "folders" / "x.json", {"b": 1, "a": "ü"})
    assert Path(tmp_path / "new/folders/x.json").read_text("utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'
