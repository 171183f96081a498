"""The harness of AdapterHub, as far as it needs no AdapterHub: in the field the library itself is asked."""

import pytest

from minipeft.conformance import verify
from minipeft.interop.adapters.harness import ENDS, arch_of, packed


@pytest.mark.parametrize(
    "method", ["houlsby", "adapter_fusion", "invertible", "loreft", "prefix_tuning", "prompt_tuning"]
)
def test_a_case_with_its_inputs_in_one_array_is_as_wide_as_before(method):
    widths = set()
    for case in (c for c in verify.choose(methods=[method], checks=["forward", "grad"]).cases if c.place in ENDS):
        inputs = {k: a for k, a in case.inputs.items() if k in ENDS[case.place][0]}
        arch = arch_of(case)
        assert arch_of(packed(case)) == arch
        widths |= {arch.d}
        assert {a.shape[-1] for a in inputs.values()} <= {arch.d, arch.dh}, case.id
    assert len(widths) == 2
