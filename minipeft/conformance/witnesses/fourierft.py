"""FourierFT: Σ_j c_j cos 2π(p k_j/out + q l_j/in) / (out·in), one wave after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    out, in_ = t["W"].shape
    p, q = np.arange(out)[:, None], np.arange(in_)[None]
    rows, columns = t["rows"], t["cols"]
    waves = [c * np.cos(2 * np.pi * (p * k / out + q * l / in_)) for c, k, l in zip(t["c"], rows, columns, strict=True)]
    W = t["W"] + m.scaling * sum(waves) / (out * in_)
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))
