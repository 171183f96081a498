"""The recorded cases: made again with the same bytes, not degenerate, twice witnessed, and passed by minipeft."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from sampled import in_turn

from minipeft.conformance import cases as files
from minipeft.conformance import record
from minipeft.conformance.mutants.killing import result_of
from minipeft.conformance.own import Own
from minipeft.conformance.record import kept
from minipeft.conformance.record import one as one_case
from minipeft.conformance.record import tiny as tiny_tier
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods

load_methods()
SHIPPED = sorted(n for n, c in METHODS.items() if c.__module__.startswith("minipeft."))


@pytest.fixture(scope="module")
def every():
    return list(files.load())


@pytest.mark.parametrize("method", in_turn(SHIPPED, every=20))
def test_recording_again_gives_the_same(method, tmp_path):
    """The same bytes on one machine; on another, whose kernels sum in another order, the same numbers but for rounding."""
    made = list(record.of_method(METHODS[method]))
    if method in SHIPPED[::15]:  # nothing in a recording depends on the method's name
        again = record.of_method(METHODS[method])
        assert all(files.encode(one) == files.encode(two) for one, two in zip(made, again, strict=True))
    for case in made:
        assert kept.same(files.read(files.SHIPPED / case.method / case.check / case.variant), case), case.id


def test_what_was_released_keeps_its_bytes(tmp_path, every):
    """Recorded again with other roundings, a case stays as it lies there; with another number, setting or file it does not."""
    case = next(c for c in every if c.id == "lora.load.plain")
    case = dataclasses.replace(case, files={p.name: p.read_bytes() for p in (case.folder / "adapter").iterdir()})
    kept.write([case], tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    unit = 2.0**-53 * case.cond["y"]
    kept.write([dataclasses.replace(case, want={"y": case.want["y"] + 2 * unit})], tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before
    for change in (
        dict(want={"y": case.want["y"] + 9 * unit}),
        dict(cond={"y": 1.1 * case.cond["y"]}),
        dict(config={**case.config, "alpha": 7.0}),
        dict(inputs={**case.inputs, "x": case.inputs["x"] + 1e-9}),
        dict(files=case.files | {"adapter_config.json": b"{}"}),
    ):
        other = dataclasses.replace(case, **change)
        assert not kept.same(files.read(case.folder), other)
        kept.write([other], tmp_path)
        assert kept.same(files.read(tmp_path / "lora/load/plain"), other)


def test_what_is_written_where_it_lies_keeps_its_files(tmp_path, every):
    """As the cases of other methods are, where one is recorded alone: an adapter's files stay among the digests."""
    shutil.copytree(next(c.folder for c in every if c.id == "lora.load.plain"), tmp_path / "lora/load/plain")
    before = (tmp_path / "lora/load/plain/case.json").read_bytes()
    kept.write([files.read(tmp_path / "lora/load/plain")], tmp_path)
    assert (tmp_path / "lora/load/plain/case.json").read_bytes() == before


def test_the_tiny_tier_is_made_again_and_is_exact():
    shipped = json.loads((files.SHIPPED / "tiny.json").read_text(encoding="utf-8"))
    assert tiny_tier.same_tiny(shipped, tiny_tier.tiny())
    other = tiny_tier.tiny()
    values = other["cases"][0]["want"]["y"]["values"]
    values[0] = (float.fromhex(values[0]) + 1e-13).hex()
    assert not tiny_tier.same_tiny(shipped, other)
    for case in tiny_tier.tiny()["cases"]:
        for t in (*case["tensors"].values(), *case["want"].values()):
            assert len(t["values"]) == np.prod(t["shape"])
            assert all(float.fromhex(v).hex() == v for v in t["values"])


def test_every_method_has_cases_of_what_it_can(every):
    checks = {m: {c.check for c in every if c.method == m} for m in SHIPPED}
    assert set(checks) == {c.method for c in every}
    assert all({"forward", "grad", "init"} <= found for found in checks.values())
    assert all("merge" in checks[m] for m in ("lora", "dora", "ia3", "vera", "oft", "bitfit"))


def test_every_method_has_cases_of_two_sizes(every):
    """In one of them blocks of four fit both ways: a block of two may be its own transpose."""
    for method in SHIPPED:
        mine = [c for c in every if c.method == method and c.check in ("forward", "grad")]
        sizes = {tuple(v.shape for k, v in c.inputs.items() if c.roles[k] != "stored") for c in mine}
        assert len(sizes) > 1
    assert any(c.inputs["W"].shape == (8, 12) for c in every if c.check == "merge")


def test_all_pass_and_are_witnessed_twice(every):
    for case in every:
        assert result_of(Own(), case).outcome == "PASS", case.id
        assert len(case.witnesses) >= 2
        assert not record.lint(case)


def test_they_pass_in_float32_too(every):
    for case in every:
        if case.check in ("forward", "grad", "merge", "train"):
            result = result_of(Own(), files.with_dtype(case, np.float32))
            assert result.outcome == "PASS", (case.id, result.ratio)


def test_index_schema_and_size(every):
    index = json.loads((files.SHIPPED / "index.json").read_text())
    assert [i["id"] for i in index["cases"]] == sorted(c.id for c in every)
    schema = json.loads((files.SHIPPED / "schema.json").read_text())
    for item in index["cases"]:
        about = json.loads((files.SHIPPED / item["path"] / "case.json").read_text())
        assert set(schema["required"]) <= set(about) and re.match(schema["properties"]["id"]["pattern"], about["id"])
        assert about["ask"] in schema["properties"]["ask"]["enum"]
        for t in about["tensors"].values():
            tensor = schema["properties"]["tensors"]["additionalProperties"]["properties"]
            assert t["role"] in tensor["role"]["enum"] and t["dtype"] in tensor["dtype"]["enum"]
    assert sum(p.stat().st_size for p in files.SHIPPED.rglob("*") if p.is_file()) <= 12e6


def test_what_makes_a_case_too_kind_is_seen(every):
    case = next(c for c in every if c.id == "lora.forward.usual")
    for change, said in (
        (dict(inputs={**case.inputs, "B": 0 * case.inputs["B"]}), "B is zero"),
        (dict(inputs={**case.inputs, "b": 0 * case.inputs["b"] + 1}), "b is constant"),
        (dict(inputs={**case.inputs, "x": case.inputs["x"] / 3}), "x is not exact in float32"),
        (dict(config={**case.config, "alpha": 2.0}), "the scale is 1.0"),
        (dict(witnesses=("one",)), "fewer than two witnesses"),
    ):
        assert any(said in line for line in record.lint(dataclasses.replace(case, **change)))


def test_a_witness_that_disagrees_stops_the_recording(monkeypatch):
    monkeypatch.setattr(one_case, "closed_form", lambda name: lambda m, t: dict(y=t["x"] @ t["W"].T))
    with pytest.raises(Bad, match=r"lora\.forward\.usual: y differs from the closed form by"):
        list(record.of_method(METHODS["lora"]))


def test_a_changed_file_is_refused(tmp_path, every):
    case = next(c for c in every if c.id == "lora.forward.usual")
    shutil.copytree(case.folder, tmp_path / "case")
    path = tmp_path / "case" / "in.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Bad, match=r"its digest is not the one in case\.json: the file was changed"):
        files.read(tmp_path / "case")
    about = json.loads((tmp_path / "case" / "case.json").read_text())
    (tmp_path / "case" / "case.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(Bad, match="expected a case of format 1, found 99"):
        files.read(tmp_path / "case")


def test_what_is_not_recorded_is_one_line():
    with pytest.raises(Bad, match=r"method 'dorra' has no recorded cases; .*\(did you mean dora"):
        list(files.load(methods=["dorra"]))
    with pytest.raises(Bad, match="check 'forwards' has no recorded cases"):
        list(files.load(checks=["forwards"]))
