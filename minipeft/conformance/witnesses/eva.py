"""EVA: LoRA's; it differs in where it starts."""

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors
from minipeft.conformance.witnesses.lora import closed

__all__ = ["closed", "start_A_rows"]


def start_A_rows(m: Any, t: Tensors) -> np.ndarray:
    """The projection on A's rows as training starts: the first r eigenvectors of the inputs' covariance."""
    X = t["X"] - t["X"].mean(axis=0)
    V = np.linalg.eigh(X.T @ X)[1][:, ::-1][:, : m.r]
    return V @ V.T
