"""The recorded cases: made again with the same bytes, not degenerate, twice witnessed, and passed by minipeft."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from sampled import in_turn

from minipeft.conformance import cases as files
from minipeft.conformance import mutants, record
from minipeft.conformance.mutants.killing import result_of
from minipeft.conformance.own import Own
from minipeft.conformance.record import kept
from minipeft.conformance.record import one as one_case
from minipeft.conformance.record import tiny as tiny_tier
from minipeft.conformance.record.alike import indistinct, shape_of
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
    config = json.loads(case.files["adapter_config.json"]) | {"came_later": 1}
    for change in (
        dict(want={"y": case.want["y"] + 2 * unit}),
        dict(
            inputs={**case.inputs, "W": case.inputs["W"] + 1e-13}, want={"y": case.want["y"] + 20 * unit}
        ),  # decomposed
        dict(files=case.files | {"adapter_config.json": json.dumps(config).encode()}),
        dict(witnesses=(*case.witnesses, "one more")),
    ):
        kept.write([dataclasses.replace(case, **change)], tmp_path)
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
    shipped = json.loads((files.SHIPPED / "tiny.json").read_text(encoding="utf-8"))["cases"]
    made = tiny_tier.tiny()
    assert [c["id"] for c in shipped] == [c["id"] for c in made] and len({c["id"] for c in made}) == len(made)
    assert all(tiny_tier.same_rows(one, other) for one, other in zip(shipped, made))
    values = made[0]["want"]["y"]["values"]
    values[0] = (float.fromhex(values[0]) + 1e-13).hex()
    assert not tiny_tier.same_rows(shipped[0], made[0])
    for case in shipped:
        for t in (*case["tensors"].values(), *case["want"].values()):
            assert len(t["values"]) == np.prod(t["shape"])
            assert all(float.fromhex(v).hex() == v for v in t["values"])


def test_every_method_has_cases_of_what_it_can(every):
    checks = {m: {c.check for c in every if c.method == m} for m in SHIPPED}
    assert set(checks) == {c.method for c in every}
    assert all({"forward", "grad", "init"} <= found for found in checks.values())
    assert all("merge" in checks[m] for m in ("lora", "dora", "ia3", "vera", "oft", "bitfit"))


def test_what_is_wanted_is_not_what_it_is_turned_over(every):
    """No transposed, permuted, conjugated or negated result passes all cases of a method; those of weights are of two shapes, one
    of which has blocks of four both ways."""
    for method in SHIPPED:
        assert not record.lint_all([c for c in every if c.method == method])


def test_what_passes_turned_over_is_found(every):
    """Wanted arrays that are their own transposes, negatives, …; one case that tells is enough."""
    case = next(c for c in every if c.id == "c3a.delta.other_sizes")
    D = np.random.default_rng(0).standard_normal((8, 12))
    parts = D.reshape(2, 4, 3, 4)
    rows = np.arange(8)
    for planted, way in (
        (parts + parts.swapaxes(1, 3), "transposed within blocks"),
        (parts + parts[:, -np.arange(4)][..., -np.arange(4)], "conjugated within blocks"),
        (D + D[rows // 4 * 4 + -rows % 4], "rows conjugated within blocks"),
        (np.tile(D[:4], (2, 1)), "rows moved by blocks"),
        (np.tile(D[:, :3], 4), "columns moved by blocks"),
        (np.repeat(D[:2], 4, axis=0), "rows moved by one within blocks"),
        (D[[0, 1, 1, 3, 4, 4, 4, 7]][:, [0] * 12], "columns taken in turn from blocks"),
        (D + D[:, 4 * (np.arange(12) // 4) + 3 - np.arange(12) % 4], "columns reversed within blocks"),
        (1e-17 * D, "of the other sign"),
        (D[:, :8] + D[:, :8].T, "transposed"),
    ):
        planted = planted.reshape(D.shape if planted.size == D.size else planted.shape)
        degenerate = dataclasses.replace(case, want={"delta": planted}, cond={"delta": 1.0})
        assert f"delta: delta {way}" in indistinct([degenerate]), way
        whole = dataclasses.replace(case, want={"delta": planted + D[:, : planted.shape[1]] ** 2})
        assert f"delta: delta {way}" not in indistinct([degenerate, whole])
    assert not any("delta" in line for line in indistinct([dataclasses.replace(case, want={"delta": D})]))


def test_a_block_without_a_sign_is_found(every):
    """Two by two neighbours that are 0 in every case that has them; one case that tells is enough."""
    case = next(c for c in every if c.id == "c3a.delta.other_sizes")
    D = np.random.default_rng(0).standard_normal((8, 12))
    hole = D.copy()
    hole[5:7, 3:5] = 0
    planted, whole, small = (
        dataclasses.replace(case, want={"delta": a}, cond={"delta": 1.0}) for a in (hole, D, D[:5, :5])
    )
    assert "delta: a block of the other sign" in indistinct([planted])
    assert "delta: a block of the other sign" in indistinct([planted, small])
    assert "delta: a block of the other sign" not in indistinct([planted, whole])
    hole[5, 3] = 1
    assert "delta: a block of the other sign" not in indistinct([dataclasses.replace(planted, want={"delta": hole})])


@pytest.mark.parametrize("method", SHIPPED)
def test_cases_are_of_two_shapes_one_of_which_has_blocks_of_four(every, method):
    """Of weights, both ways; of methods that act on activations, in their width. A method for which that makes no sense says why."""
    shapes = {shape_of(c) for c in every if c.method == method} - {()}
    excused = {
        what
        for words in mutants.said(method, "ALIKE").values()
        for what in words
        if " shape" in what or "blocks of four" in what
    }
    fit = [s for s in shapes if (np.gcd.reduce(s) >= 4 if len(s) > 1 else s[0] % 4 == 0)]
    assert excused or (len(shapes) >= 2 and fit), shapes


def test_shapes_that_are_too_few_are_found(every):
    streams = [c for c in every if c.method == "houlsby" and c.variant != "other_sizes"]
    assert indistinct(streams)[-1] == "results of 1 shape alone"
    other = [c for c in every if c.id == "houlsby.forward.usual"]
    wider = [dataclasses.replace(c, want={"y": np.concatenate([c.want["y"]] * 3, axis=-1)[..., :15]}) for c in other]
    assert "no result in which blocks of four fit" in indistinct(other + wider)
    usual = [c for c in every if c.method == "c3a" and c.variant == "usual"]
    assert "weights of 1 shape alone" in indistinct(usual) and "delta: delta transposed within blocks" in indistinct(
        usual
    )
    tall = [c for c in every if c.method == "randlora" and c.variant != "other_sizes"]
    assert indistinct(tall) == ["no weight in which blocks of four fit both ways"]
    narrow = [c for c in every if c.method == "invertible" and c.variant != "wider"]
    assert "F1 with m = 1" in indistinct(narrow)
    assert record.lint_all(usual)[0] == "c3a: delta: delta transposed within blocks: all cases leave it open"
    some = [c for c in every if c.method == "qa_lora" and c.ask == "forward"]
    assert record.lint_all(some)[-1].endswith("reversed within blocks: said to be alike, and is not")


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
    assert sum(p.stat().st_size for p in files.SHIPPED.rglob("*") if p.is_file()) <= 16e6


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
    with pytest.raises(Bad, match=r"method 'dorra' has no recorded cases \(did you mean dora"):
        list(files.load(methods=["dorra"]))
    with pytest.raises(Bad, match="check 'forwards' has no recorded cases"):
        list(files.load(checks=["forwards"]))
