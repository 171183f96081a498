"""Parallel adapter: Towards a Unified View of Parameter-Efficient Transfer Learning. He et al. 2021, https://arxiv.org/abs/2110.04366

    a' = a + s (Wu f(Wd u + bd) + bu)                                         (paper, table 1, "scaled parallel adapter")

where a = FFN(u) is the output of the feed-forward and u its input.

Merges   no: f is not linear.
Differs  The paper's adapter reads the feed-forward's own input, which pre-norm models normalise: reads="input". That of
         AdapterHub reads the residual stream: reads="residual". The two are the same in post-norm models.

>>> class Here: u, x = np.array([[5., 0.]]), np.array([[7., 0.]])
>>> Wd, bd, Wu, bu = np.eye(1, 2), np.zeros(1), np.eye(2, 1), np.zeros(2)
>>> ParallelAdapter().apply(np.array([[1., 2.]]), Here, Wd=Wd, bd=bd, Wu=Wu, bu=bu)
array([[21.,  2.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, at_least, choice, fill, free, trained, uniform
from minipeft.methods.bottleneck.houlsby import Houlsby
from minipeft.model.activations import ACTIVATIONS


@dataclass(frozen=True)
class ParallelAdapter(Houlsby):
    """A bottleneck beside every feed-forward."""

    identity = True
    targets: str = "mlp.out"
    reduction: float = at_least(1 / 64, 2.0, tried=5.0)
    f: str = choice(*ACTIVATIONS, default="relu", varied=False)
    s: float = free(4.0, tried=2.5)
    learned_scale: bool = False
    reads: str = choice("input", "residual", reading=True)

    Wd = trained("m", "d", start=uniform("d"))
    Wu = trained("d", "m")
    g = trained("1", start=fill(1), when="learned_scale")

    def apply(self, a: Any, here: Here, *, g: Any = None, **arrays: Any) -> Any:
        z = self.bottleneck(here.u if self.reads == "input" else here.x, **arrays)
        return a + self.s * (z if g is None else g * z)
