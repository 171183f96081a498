"""Houlsby adapters: Parameter-Efficient Transfer Learning for NLP. Houlsby et al. 2019, https://arxiv.org/abs/1902.00751

    a' = a + Wu f(Wd a + bd) + bu                                             (paper, §2.1 and fig. 2)

where a is the output of a sub-layer, attention or feed-forward, before it is added to the residual stream.

    Wd  (m, d)  trained   N(0, 0.02²)
    bd  (m)     trained   0
    Wu  (d, m)  trained   N(0, 0.02²); 0 with start="zero"
    bu  (d)     trained   0

Size     2 d m + m + d numbers per site, two sites a layer; m = d / reduction.
Merges   no: f is not linear.
Differs  The paper draws the weights from a Gaussian of deviation 0.01 cut at two deviations and trains the layer norms
         too (§2.1); AdapterHub draws them from N(0, 0.02²) and leaves the norms alone. We follow AdapterHub.

>>> Wd, bd, Wu, bu = np.eye(1, 2), np.zeros(1), 3 * np.eye(2, 1), np.zeros(2)
>>> Houlsby(f="relu").apply(np.array([[1., 2.]]), None, Wd=Wd, bd=bd, Wu=Wu, bu=bu)
array([[4., 2.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.engine import ops
from minipeft.method import Here, Method, Site
from minipeft.model.transformer import ACTIVATIONS
from minipeft.settings import at_least, choice


@dataclass(frozen=True)
class Houlsby(Method):
    """A bottleneck after every sub-layer."""

    targets: str = "attn.out cross.out mlp.out"
    reduction: float = at_least(1 / 64, 16.0)  # d / m
    f: str = choice(*ACTIVATIONS, default="silu", varied=False)
    start: str = choice("normal", "zero")  # how Wu begins
    takes: ClassVar[str] = "vectors"

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with Wu = 0."""
        return self.start == "zero"

    def sizes(self, site: Site) -> dict[str, int]:
        return dict(m=max(1, int(site.shape[-1] // self.reduction)))

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        (d,) = site.shape
        m = self.sizes(site)["m"]
        Wd, Wu = 0.02 * rng.standard_normal((m, d)), 0.02 * rng.standard_normal((d, m))
        return dict(Wd=Wd, bd=np.zeros(m), Wu=Wu * (self.start == "normal"), bu=np.zeros(d))

    def bottleneck(self, h: Any, Wd: Any, bd: Any, Wu: Any, bu: Any) -> Any:
        """Wu f(Wd h + bd) + bu along the last axis."""
        return ops.linear(ACTIVATIONS[self.f](ops.linear(h, Wd, bd)), Wu, bu)

    def apply(self, a: Any, here: Here, **arrays: Any) -> Any:
        return a + self.bottleneck(a, **arrays)
