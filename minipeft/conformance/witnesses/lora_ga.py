"""LoRA-GA: PiSSA's; it differs in where it starts."""

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors
from minipeft.conformance.witnesses.pissa import closed

__all__ = ["closed", "start_BA"]


def start_BA(m: Any, t: Tensors) -> np.ndarray:
    """B A as training starts: the left vectors of G's second r triples times the right ones of the first, by eigenvectors."""
    G, r = t["G"], m.r
    largest, V = np.linalg.eigh(G.T @ G)
    V, largest = V[:, ::-1], largest[::-1]
    J, top = V[:, r : 2 * r], V[:, :r]
    U = G @ J / np.sqrt(largest[r : 2 * r])
    sign = np.sign(top[abs(top).argmax(axis=0), range(r)]) * np.sign(J[abs(J).argmax(axis=0), range(r)])
    return (len(G) ** 0.5 / m.gamma) * (U * sign) @ top.T
