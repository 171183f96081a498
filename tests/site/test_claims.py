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
            found[m, n] = [outcome(m, {TEXTS[0]: 0.1, TEXTS[1]: -0.1, TEXTS[2]: 0.0}[n], **slow) for _ in SEEDS]
    rows = {line.split(" | ")[0].strip("| "): line for line in page(found).splitlines() if line.startswith("| ")}
    assert "| holds |" in rows[f"a step of {FEW[0]} takes less time than of full fine-tuning"]
    assert "does not hold" in rows[f"a step of {FEW[-1]} takes less time than of full fine-tuning"]
    better = f"{FEW[0]} is better than full fine-tuning on {{}} texts".format
    assert "+0.100 ± 0.000 | does not hold" in rows[better(TEXTS[0])]
    assert "-0.100 ± 0.000 | holds" in rows[better(TEXTS[1])]
    assert "0.000 | cannot be told" in rows[better(TEXTS[2])]
    assert "does not hold" in rows[f"what {FEW[-1]} made forget comes back when it is off"]
    assert "bit for bit | holds" in rows[f"what {FEW[0]} made forget comes back when it is off"]
