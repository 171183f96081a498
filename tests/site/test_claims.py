"""The page of claims says of each what the numbers say; here with numbers made up so that each way is there."""

import numpy as np

from minipeft.compare import Outcome
from minipeft.compare.outcomes import WHOLE
from minipeft.site.claims import FEW, SEEDS, TEXTS, page


def outcome(method, worse, **more):
    losses = np.linspace(1, 2, 40) + worse
    given = dict(
        share=1.0, step_seconds=0.02, peak_bytes=80, optimiser_bytes=5, text_before=4.0, text_on=4.5, text_off=4.0
    )
    return Outcome(method, losses=losses, **given | more)


def test_a_claim_holds_or_does_not_by_the_numbers():
    whole = dict(share=100.0, step_seconds=0.03, peak_bytes=100, optimiser_bytes=100, text_on=5.0)
    found = {(WHOLE, n): [outcome(WHOLE, 0.0, **whole) for _ in SEEDS] for n in TEXTS}
    for m in FEW:
        slow = dict(step_seconds=0.05, text_off=4.1) if m == FEW[-1] else {}
        for n in TEXTS:
            found[m, n] = [outcome(m, 0.1 if n == TEXTS[0] else -0.1, **slow) for _ in SEEDS]
    rows = {line.split(" | ")[0].strip("| "): line for line in page(found).splitlines() if line.startswith("| ")}
    assert "| holds |" in rows[f"a step of {FEW[0]} takes less time than of full fine-tuning"]
    assert "does not hold" in rows[f"a step of {FEW[-1]} takes less time than of full fine-tuning"]
    assert (
        "+0.100 ± 0.000 than full | does not hold"
        in rows[f"{FEW[0]} is better than full fine-tuning where data are few: {TEXTS[0]} texts"]
    )
    assert (
        "-0.100 ± 0.000 than full | holds"
        in rows[f"{FEW[0]} is better than full fine-tuning where data are few: {TEXTS[1]} texts"]
    )
    assert "does not hold" in rows[f"what {FEW[-1]} made forget comes back when it is off"]
    assert "bit for bit | holds" in rows[f"what {FEW[0]} made forget comes back when it is off"]
