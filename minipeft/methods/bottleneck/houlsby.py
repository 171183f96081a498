"""Houlsby adapters: Parameter-Efficient Transfer Learning for NLP. Houlsby et al. 2019, https://arxiv.org/abs/1902.00751

    a' = a + Wu f(Wd a + bd) + bu                                             (paper, §2.1 and fig. 2)

where a is the output of a sub-layer, attention or feed-forward, before it is added to the residual stream.

Merges   no: f is not linear.
Differs  The paper draws the weights from a Gaussian of deviation 0.01 cut at two deviations and trains the layer norms
         too (§2.1); AdapterHub draws them from N(0, 0.02²) and leaves the norms alone. We follow AdapterHub.

>>> Wd, bd, Wu, bu = np.eye(1, 2), np.zeros(1), 3 * np.eye(2, 1), np.zeros(2)
>>> Houlsby(f="relu").apply(np.array([[1., 2.]]), None, Wd=Wd, bd=bd, Wu=Wu, bu=bu)
array([[4., 2.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, Method, at_least, choice, normal, size, trained, zero_if
from minipeft.engine import ops
from minipeft.model.activations import ACTIVATIONS


@dataclass(frozen=True)
class Houlsby(Method):
    """A bottleneck after every sub-layer."""

    targets: str = "attn.out cross.out mlp.out"
    takes = "vectors"
    reduction: float = at_least(1 / 64, 16.0, tried=5.0)  # d / m
    f: str = choice(*ACTIVATIONS, default="silu", varied=False)
    start: str = choice("normal", "zero")  # how Wu begins

    m = size("max(1, int(d // reduction))")
    Wd = trained("m", "d", start=normal(0.02))
    bd = trained("m")
    Wu = trained("d", "m", start=zero_if("start == 'zero'", normal(0.02)))
    bu = trained("d")

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with Wu = 0."""
        return self.start == "zero"

    def bottleneck(self, h: Any, Wd: Any, bd: Any, Wu: Any, bu: Any) -> Any:
        """Wu f(Wd h + bd) + bu along the last axis."""
        return ops.linear(ACTIVATIONS[self.f](ops.linear(h, Wd, bd)), Wu, bu)

    def apply(self, a: Any, here: Here, **arrays: Any) -> Any:
        return a + self.bottleneck(a, **arrays)
