"""A step of ours learns."""

import pytest

from minipeft import bench as job


@pytest.mark.parametrize("method", job.METHODS)
def test_our_step_learns(method):
    step = job.our_step("S", method)
    losses = [step() for _ in range(4)]
    assert losses[-1] < losses[0]


def test_a_step_over_a_base_in_bfloat16():
    half, single = job.our_step("S", "lora", dtype="bfloat16"), job.our_step("S", "lora")
    losses = [half() for _ in range(3)]
    assert losses[-1] < losses[0] and losses[0] != single()
    assert job.our_model("S", "bfloat16").digest() == job.our_model("S").astype("bfloat16").digest()
