"""Libraries that are installed are judged as they are known to be, within the time that is promised."""

import time
from fnmatch import fnmatch
from importlib.util import find_spec

import pytest

from minipeft.conformance import expect, program, verify
from minipeft.conformance.expect import explained, of_harness

pytestmark = pytest.mark.hf
LIBRARIES = {"mlx-lm": "mlx_lm"}
ELSEWHERE = ("adapters", "torchtune")  # each needs an environment of its own


@pytest.mark.parametrize("name", [p for p in program.PEERS if p not in ELSEWHERE])
def test_a_library_is_as_it_is_known_to_be(name):
    library = LIBRARIES.get(name, name)
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    begun = time.perf_counter()
    results = verify.run(name, verify.choose(), limit=60.0)
    assert time.perf_counter() - begun < 120
    known = of_harness(name)
    assert expect.unexpected(results, known) == []
    wrong = [r for r in explained(results, known) if r.outcome in ("FAIL", "ERROR")]
    assert all(r.url for r in wrong)
    assert any(r.outcome in ("PASS", "READING") for r in results)


KERNELS = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Prescott"}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_verdict_does_not_depend_on_the_processor(dtype, monkeypatch):
    """PEFT under the kernels of this processor and of the plainest: the same outcomes and diagnoses, all as known, none near its bound.

    What PEFT computes in float32 even in float64, and fails there for, may lie near its bound in float32.
    """
    pytest.importorskip("peft")
    chosen = verify.choose()
    k = {c.id: c.k for c in chosen.cases if c.tolerance in ("COND", "SUBSPACE")}
    here = verify.run("peft", chosen, limit=60.0, dtype=dtype)
    for name, value in KERNELS.items():
        monkeypatch.setenv(name, value)
    plain = verify.run("peft", chosen, limit=60.0, dtype=dtype)
    assert [(r.id, r.outcome, r.diagnosis) for r in here] == [(r.id, r.outcome, r.diagnosis) for r in plain]
    assert any(a.ratio != b.ratio for a, b in zip(here, plain, strict=True))  # they are other kernels
    for results in (here, plain):
        assert expect.unexpected(results, of_harness("peft")) == []
        loose = [e for e in of_harness("peft") if e.dtype == "float64" and e.dtype != dtype]
        judged = [r for r in results if r.id in k and r.ratio is not None]
        judged = [r for r in judged if not any(fnmatch(r.id, e.id) for e in loose)]
        assert [(r.id, r.ratio) for r in judged if k[r.id] / 2 <= r.ratio <= 2 * k[r.id]] == []


@pytest.mark.parametrize(
    "case, name",
    [
        ("dora.combine.identity", "combine_forgets_magnitude"),
        ("lora.combine.identity-rslora=True", "combine_under_rslora"),
        ("lora.combine.identity-lora_bias=True", "combine_forgets_bias"),
        ("lora.merge_bfloat16.usual", "merge_rounds_the_change"),
        ("lora.unmerge_bfloat16.usual", "unmerge_subtracts_rounded"),
        ("ia3.unmerge.usual", "unmerge_guarded"),
        ("oft.unmerge.usual", "float32_inside"),
    ],
)
def test_what_is_wrong_is_named(case, name):
    if find_spec("peft") is None:
        pytest.skip("peft is not installed")
    (result,) = verify.run("peft", verify.choose(ids=[case]), jobs=1)
    assert result.outcome == "FAIL" and name in result.diagnosis
