"""MonteCLoRA: LoRA's, for what is sampled in training alone is not there; and the slopes of its divergences."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import polygamma

from minipeft.conformance.witnesses import Tensors
from minipeft.conformance.witnesses.lora import closed

__all__ = ["added", "closed"]


def added(m: Any, a: Tensors) -> Tensors:
    """KL(σ) and KL(V) by e^2σ, the second N times; KL(a, a₀) of two Dirichlets by a = e^p, and E Σ w²."""
    weights = np.exp(a["p"])
    total = weights.sum()
    slope = (weights - m.prior) * polygamma(1, weights) - (total - m.N * m.prior) * polygamma(1, total)
    p = m.kl * slope * weights
    if m.entropy:
        square, all_ = (weights * (weights + 1)).sum(), total * (total + 1)
        p = p + ((2 * weights + 1) / all_ - square * (2 * total + 1) / all_**2) * weights
    grown = m.r * np.exp(2 * a["sigma"])
    return dict(p=p, sigma=m.kl * (grown - m.r + m.N * (grown - 1)))
