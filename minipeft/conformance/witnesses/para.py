"""PaRa: DEFT's, where nothing is put in for what is taken out."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each
from minipeft.conformance.witnesses.deft import reflected


def closed(m: Any, t: Tensors) -> Tensors:
    P, W = t["P"], t["W"].copy()
    Q, Z = (P, P.clip(0)) if m.projector == "relu" else (reflected(P), reflected(P))
    for q, z in zip(Q.T, Z.T, strict=True):
        W -= np.outer(q, z @ t["W"])
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


TINY = ((dict(r=1), dict(P=(2, 1))),)
