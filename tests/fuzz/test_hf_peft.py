"""Adapters of PEFT, drawn at random: minipeft computes the same as PEFT, or refuses in one line; and so back."""

import pytest

pytestmark = pytest.mark.hf


def found(draws, seed, tuners=(), shapes=(), deep=False):
    import peft_fuzz

    drawn = list(peft_fuzz.run(tuners or peft_fuzz.TUNERS, draws, seed, shapes, deep))
    print(peft_fuzz.table(drawn))  # what is refused that PEFT computes: pytest -s
    defects = [str(d) for d in drawn if d.outcome == "defect"]
    assert not defects, "\n".join([f"{len(defects)} of {len(drawn)}:", *defects])
    assert sum(d.outcome in ("equal", "float32") for d in drawn) >= 0.5 * len(drawn)


@pytest.mark.parametrize("tuner", ["C3A", "IA3", "LN_TUNING", "LOKR", "LORA", "ROAD", "TINYLORA", "VBLORA"])
def test_some_drawn_adapters(tuner):
    found(4, 0, [tuner])


@pytest.mark.parametrize("tuner", ["ADALORA", "BOFT", "HIRA", "HRA", "IA3", "LOHA", "LOKR", "LORA"])
def test_some_drawn_adapters_on_patches(tuner):
    """Of every tuner that has layers for convolutions; half of the draws target one."""
    found(6, 50, [tuner], ("vit",))


@pytest.mark.slow
def test_many_drawn_adapters():
    """With losses, gradients, generated tokens, float32 and merging."""
    found(30, 1000, deep=True)
