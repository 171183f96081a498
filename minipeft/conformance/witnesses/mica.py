"""MiCA: LoRA's; it differs in where it starts, and in what is trained."""

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors
from minipeft.conformance.witnesses.lora import closed

__all__ = ["closed", "start_B_columns"]


def start_B_columns(m: Any, t: Tensors) -> np.ndarray:
    """The projector on B's columns: of the eigenvectors of W Wᵀ that W reaches, the r with the smallest eigenvalues."""
    reached = min(t["W"].shape)
    least = np.linalg.eigh(t["W"] @ t["W"].T)[1][:, ::-1][:, reached - m.r : reached]
    return least @ least.T
