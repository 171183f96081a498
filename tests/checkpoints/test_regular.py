"""Files that nobody vouches for: no pipe is waited for, nothing is taken that a file only claims."""

import json
import os
import socket
import struct
import tracemalloc

import numpy as np
import pytest

from minipeft import limits
from minipeft.checkpoints import load
from minipeft.checkpoints.files import (
    read_file,
    read_folder,
    read_header,
    read_json,
    read_tensors,
    write_bytes,
    write_tensors,
)
from minipeft.checkpoints.mapped import map_tensors
from minipeft.data.table import read_csv
from minipeft.errors import Bad
from minipeft.text import load_tokenizer

READERS = (read_json, read_header, read_tensors, map_tensors, read_csv, lambda p: read_file(p, 9))


def one_line(read, path, says):
    with pytest.raises(Bad, match=says) as told:
        read(path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
    for read in READERS:
        for name, what in dict(pipe="a pipe", link="a pipe", socket="a socket").items():
            one_line(read, tmp_path / name, f"expected a file, found {what}")
        one_line(read, tmp_path, "expected a file, found a folder")
        one_line(read, "/dev/zero", "expected a file, found a device")
        one_line(read, tmp_path / "loop", "no such file")
        one_line(read, tmp_path / ("x" * 300), "cannot be read: File name too long")
        one_line(read, tmp_path / "a\0b", "no such file")


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    one_line(load, tmp_path, "config.json: expected a file, found a pipe")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    one_line(load, tmp_path, "model.safetensors: expected a file, found a pipe")
    os.mkfifo(tmp_path / "tokenizer.json")
    one_line(load_tokenizer, tmp_path, "tokenizer.json: expected a file, found a pipe")


def sparse(path, start, size):
    with open(path, "wb") as f:
        f.write(start)
        f.truncate(size)
    return path


def test_gigabytes_are_refused_by_their_size(tmp_path):
    tracemalloc.start()
    try:
        for name in ("x.json", "tokenizer.json", "x.csv"):
            sparse(tmp_path / name, b"[", 1 << 40)
        one_line(read_json, tmp_path / "x.json", r"expected at most 67,108,864 bytes, found 1,099,511,627,776")
        one_line(load_tokenizer, tmp_path, r"tokenizer.json: expected at most")
        one_line(read_csv, tmp_path / "x.csv", r"expected at most")
        n = 1 << 43
        text = json.dumps({"x": dict(dtype="U8", shape=[n], data_offsets=[0, n])}).encode()
        huge = sparse(tmp_path / "x.safetensors", struct.pack("<Q", len(text)) + text, 8 + len(text) + n)
        one_line(read_tensors, huge, r"its tensors take 8,796,093,022,208 bytes, this machine has")
        text = b"[" * limits.JSON_VALUES + b"]"
        (tmp_path / "y.json").write_bytes(text)
        one_line(read_json, tmp_path / "y.json", r"JSON of at most 64 brackets")
        (tmp_path / "y.json").write_bytes(text + b"[")
        one_line(read_json, tmp_path / "y.json", r"expected at most 2,097,152 commas and brackets, found 2,097,153")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 27


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 1}', "it names 'a' twice"),
        ('{"a": {"b": NaN}}', "found 'NaN', which is no finite number"),
        ("[-Infinity]", "no finite number"),
        ("[1e999]", "found '1e999', which is no finite number"),
        ("[" * 65 + "]" * 65, "at most 64 brackets inside one another"),
        ('{"a":' * 65 + "1" + "}" * 65, "at most 64 brackets inside one another"),
        ("[" * 10**6, "at most 64 brackets inside one another"),
        (r'["\ud800"]', "surrogates not allowed"),
        (r'{"\udfff": 1}', "surrogates not allowed"),
        ("[" + "9" * 5000 + "]", "expected JSON"),
        ("\ufeff[]", "expected JSON"),
    ],
)
def test_json_that_is_none(tmp_path, text, says):
    (tmp_path / "x.json").write_text(text)
    one_line(read_json, tmp_path / "x.json", says)


def test_json_that_is_some(tmp_path):
    (tmp_path / "x.json").write_text(r'{"a": [1e300, -0.5, "\ud83d\ude00 [[[,,,"], "b": ' + "[" * 63 + "]" * 63 + "}")
    assert read_json(tmp_path / "x.json")["a"] == [1e300, -0.5, "\U0001f600 [[[,,,"]


def header(path, text, data=b""):
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_millions_of_tensors_are_refused_before_they_are_made(tmp_path):
    many = b"{" + b'"a":{"dtype":"U8","shape":[],"data_offsets":[0,0]},' * (limits.TENSORS + 2000) + b"}"
    words = b'{"__metadata__":{' + b'"a":"",' * (limits.HEADER_VALUES + 1) + b"}}"
    tracemalloc.start()
    try:
        one_line(
            read_header, header(tmp_path / "a.safetensors", many), r"has 264,\d+ objects; expected at most 262,144"
        )
        one_line(read_header, header(tmp_path / "b.safetensors", words), r"expected at most 3,145,728 commas")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(words) + len(many)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"' + b"x" * 2000 + b'":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', "a name of 2,000 characters"),
        (b'{"x":{"dtype":"U8","shape":[' + b"1," * 99 + b'0],"data_offsets":[0,0]}}', "expected at most 32 axes"),
        (
            b'{"x":{"dtype":"U8","shape":[' + b"9999999," * 10**5 + b'0],"data_offsets":[0,0]}}',
            "expected at most 32 axes",
        ),
        (b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"z":NaN}}', "no finite number"),
        (b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', "surrogates"),
    ],
    ids=range(5),
)
def test_headers_that_claim_too_much(tmp_path, text, says):
    one_line(read_header, header(tmp_path / "x.safetensors", text), says)


def test_booleans_are_0_or_1(tmp_path):
    path = header(tmp_path / "x.safetensors", b'{"x":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}', b"\1\2")
    one_line(read_tensors, path, "bytes that are neither 0 nor 1")


def test_only_what_is_asked_for_is_read(tmp_path):
    write_tensors(tmp_path / "x.safetensors", dict(a=np.zeros(1 << 22), b=np.arange(3.0)))
    tracemalloc.start()
    try:
        assert read_tensors(tmp_path / "x.safetensors", keys=["b"])["b"].tolist() == [0, 1, 2]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    write_tensors(tmp_path / "x.safetensors", dict(a=np.ones(100)))
    (tmp_path / "x.json").write_text("[1, 2]")
    real = os.fstat

    def longer(handle):
        found = list(real(handle))
        found[6] += 10
        return os.stat_result(found)

    monkeypatch.setattr("minipeft.checkpoints.regular.os.fstat", longer)
    one_line(read_json, tmp_path / "x.json", "changed while it was read: 10 bytes are gone")
    one_line(read_tensors, tmp_path / "x.safetensors", "truncated or padded")


def folder_of(path, where, **config):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=where)))
    return path


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "..", "", ".", "a/b.safetensors", "a\0b"])
def test_shards_stay_in_their_folder(tmp_path, name):
    one_line(read_folder, folder_of(tmp_path / "m", {"x": name}), "outside of the folder")


def test_an_index_of_what_is_no_shard(tmp_path):
    folder = folder_of(tmp_path / "m", {"x": "a.safetensors"})
    os.mkfifo(folder / "a.safetensors")
    one_line(read_folder, folder, "expected a file, found a pipe")
    folder_of(folder, {str(n): f"{n}.safetensors" for n in range(limits.TENSORS + 1)})
    one_line(read_folder, folder, "expected at most 262,144 tensors, found 262,145")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a", "x": "b"}}')
    one_line(read_folder, folder, "it names 'x' twice")


def test_a_model_of_70_billion_numbers_is_opened(tmp_path):
    """80 layers in 16 files, of which nothing but the headers is written."""
    d, kv, ff, layers, vocab = 8192, 1024, 28672, 80, 32000
    shapes = {"model.embed_tokens.weight": [vocab, d], "model.norm.weight": [d], "lm_head.weight": [vocab, d]}
    for n in range(layers):
        own = {"self_attn.q_proj": [d, d], "self_attn.k_proj": [kv, d], "self_attn.v_proj": [kv, d], "self_attn.o_proj": [d, d],
               "mlp.gate_proj": [ff, d], "mlp.up_proj": [ff, d], "mlp.down_proj": [d, ff], "input_layernorm": [d], "post_attention_layernorm": [d]}  # fmt: skip
        shapes |= {f"model.layers.{n}.{m}.weight": s for m, s in own.items()}
    names, where = list(shapes), {}
    for k in range(16):
        at, entries, file = 0, {}, f"model-{k + 1:05d}-of-00016.safetensors"
        for name in names[k::16]:
            size = 2 * int(np.prod(shapes[name]))
            entries[name] = dict(dtype="BF16", shape=shapes[name], data_offsets=[at, at + size])
            at, where[name] = at + size, file
        text = json.dumps(entries).encode()
        tmp_path.mkdir(exist_ok=True)
        sparse(tmp_path / file, struct.pack("<Q", len(text)) + text, 8 + len(text) + at)
    folder_of(
        tmp_path, where, model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=d, num_hidden_layers=layers,
        num_attention_heads=64, num_key_value_heads=8, intermediate_size=ff, vocab_size=vocab, rms_norm_eps=1e-5,
    )  # fmt: skip
    tracemalloc.start()
    try:
        model = load(tmp_path, "bfloat16")
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()
    assert model.size == sum(int(np.prod(s)) for s in shapes.values()) > 68e9


def test_a_file_is_written_where_a_link_points_and_in_place_of_a_file_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "away" / "x")
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(Bad, match=f"{name}: expected a file, found {kind}"):
            write_bytes(tmp_path / name, b"1")
    with pytest.raises(Bad, match="/dev/null: expected a file, found a device"):
        write_bytes("/dev/null", b"1")
    for data in (b"1", b"2"):
        write_bytes(tmp_path / "link", data)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "away" / "x").read_bytes() == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["away", "folder", "link", "pipe"]
