"""Libraries that are installed are judged as they are known to be, within the time that is promised."""

import time
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
