"""Made-up outcomes whose truth is known."""

import numpy as np

from minipeft.compare import Outcome

SEEDS, EXAMPLES = (3, 4, 5), 300


def outcomes(**shifts):
    """Outcomes of every seed: losses of shared hard and easy examples, shifted by what the method gives."""
    rng = np.random.default_rng(0)
    hard = rng.gamma(2.0, 0.5, EXAMPLES)
    out = {}
    for name, shift in {"majority": 0.7, "frozen": 0.0, **shifts}.items():
        out[name] = []
        for seed in SEEDS:
            losses = hard + shift + 0.02 * rng.standard_normal(EXAMPLES)
            o = Outcome(name, seed, losses, losses < 1.2, trained=100, share=1.5, curve=[2.0, 1.0])
            o.step_seconds, o.peak_bytes, o.text_before, o.text_on, o.text_off = 0.02, 10**7, 4.0, 4.5, 4.0
            out[name].append(o)
    return out
