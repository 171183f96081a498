"""Training: optimisers, schedules, and `fit`, which can be killed and resumed."""

from minipeft.train import fast
from minipeft.train.loop import State, Trained, accumulated, fit
from minipeft.train.optimisers import OPTIMISERS, SCHEDULES, SGD, Adafactor, AdamW, clipped, global_norm, rate
from minipeft.train.progress import progress_bar

__all__ = [
    "OPTIMISERS", "SCHEDULES", "SGD", "Adafactor", "AdamW", "State", "Trained", "accumulated", "clipped", "fast", "fit",
    "global_norm", "progress_bar", "rate",
]  # fmt: skip
