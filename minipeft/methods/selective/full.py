"""Full fine-tuning: the baseline. Every parameter is trained.

    W' = W₁

    W1  like W  trained  W, hence W' = W before training

Size     size numbers per parameter: as many as W has.
Merges   exactly: W' is an ordinary weight.
Differs  Nothing is frozen, yet the base is not written to: the trained copy stands beside it. A head that is tied to a
         trained token table stays tied: head="follows". HF peft's modules_to_save leaves it as it was: head="stays".

>>> Full().weight(np.zeros((1, 2)), W1=np.array([[3., 4.]]))
array([[3., 4.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine.bfloat16 import widened
from minipeft.method import Method, Site
from minipeft.settings import choice


@dataclass(frozen=True)
class Full(Method):
    """Full fine-tuning of the targeted parameters."""

    targets: str = "*.weight *.bias *.cls"
    head: str = choice("follows", "stays", reading=True)  # of a tied head
    takes: ClassVar[str] = "parameters"
    usual_lr: ClassVar[float] = 1e-3

    @property
    def ties(self) -> bool:  # type: ignore[override]
        """Whether a tied head changes with the table."""
        return self.head == "follows"

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        W = widened(site.W)
        return dict(W1=W.copy())

    def weight(self, W: Any, *, W1: Any) -> Any:
        return W1
