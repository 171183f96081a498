"""Parallel adapter: Towards a Unified View of Parameter-Efficient Transfer Learning. He et al. 2021, https://arxiv.org/abs/2110.04366

    a' = a + s (Wu f(Wd u + bd) + bu)                                         (paper, table 1, "scaled parallel adapter")

where a = FFN(u) is the output of the feed-forward and u its input.

    Wd  (m, d)  trained   U(±1/√d)
    bd  (m)     trained   0
    Wu  (d, m)  trained   0, hence a' = a before training
    bu  (d)     trained   0
    g   (1)     trained   1, a factor on s; only with learned_scale

Size     2 d m + m + d + learned_scale numbers per site, one site a layer; m = d / reduction.
Merges   no: f is not linear.
Differs  The paper's adapter reads the feed-forward's own input, which pre-norm models normalise: reads="input". That of
         AdapterHub reads the residual stream: reads="residual". The two are the same in post-norm models.

>>> class Here: u, x = np.array([[5., 0.]]), np.array([[7., 0.]])
>>> Wd, bd, Wu, bu = np.eye(1, 2), np.zeros(1), np.eye(2, 1), np.zeros(2)
>>> ParallelAdapter().apply(np.array([[1., 2.]]), Here, Wd=Wd, bd=bd, Wu=Wu, bu=bu)
array([[21.,  2.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.method import Here, Site
from minipeft.methods.bottleneck.houlsby import Houlsby
from minipeft.model.transformer import ACTIVATIONS
from minipeft.settings import at_least, choice


@dataclass(frozen=True)
class ParallelAdapter(Houlsby):
    """A bottleneck beside every feed-forward."""

    targets: str = "mlp.out"
    reduction: float = at_least(1 / 64, 2.0)
    f: str = choice(*ACTIVATIONS, default="relu", varied=False)
    s: float = 4.0
    learned_scale: bool = False
    reads: str = choice("input", "residual", reading=True)
    identity: ClassVar[bool] = True
    usual_lr: ClassVar[float] = 5e-3

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        (d,) = site.shape
        m = self.sizes(site)["m"]
        arrays = dict(Wd=rng.uniform(-(d**-0.5), d**-0.5, (m, d)), bd=np.zeros(m), Wu=np.zeros((d, m)), bu=np.zeros(d))
        return arrays | (dict(g=np.ones(1)) if self.learned_scale else {})

    def apply(self, a: Any, here: Here, *, g: Any = None, **arrays: Any) -> Any:
        z = self.bottleneck(here.u if self.reads == "input" else here.x, **arrays)
        return a + self.s * (z if g is None else g * z)
