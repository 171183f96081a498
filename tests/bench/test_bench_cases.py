"""What a size means, and what its step multiplies."""

import pytest

from minipeft import bench as job
from minipeft.bench.cases import filled
from minipeft.errors import Bad


def test_a_size_can_be_changed():
    assert job.settings("M,t=512,b=1,r=4") == job.SIZES["M"] | dict(t=512, b=1, r=4)
    with pytest.raises(Bad, match="expected one of S, M"):
        job.settings("N")


def test_flops_by_hand():
    """S: 512 tokens; 2 layers of 4 d² + 12 d² weights, scores and mix 2 t d; the head; twice for the input gradients."""
    assert job.flops("S") == 2 * 2 * 512 * (2 * (16 * 64 * 64 + 2 * 64 * 64) + 64 * 128)


def test_a_method_is_given_the_numbers_of_a_size():
    """What a step is made with: the rank that a size says, and on the largest vocabulary few methods."""
    assert filled({"r": "{r}", "targets": "all-linear"}, "S,r=4") == {"r": 4, "targets": "all-linear"}
    at_gpt2 = job.plan(None, ["GPT2,t=64"], job.METHODS).rows
    assert [m for _, m, _ in at_gpt2] == [m for m in job.METHODS if job.fits(m, "GPT2")] == [job.METHODS[0]]
