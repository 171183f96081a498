"""Pfeiffer adapters: Non-Destructive Task Composition. Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00247

    g  = x + a           in pre-norm models,  Norm(x + a) in post-norm models  (paper, §3 and fig. 3)
    a' = a + Wu f(Wd g + bd) + bu

where a is the output of the feed-forward and x the residual stream that it will be added to; the layer goes on with
x + a' or Norm(x + a'), so that a post-norm layer's norm is used twice.

Merges   no: f is not linear.
Differs  The paper found this placement by search and shows it in a figure; the equations above are those of AdapterHub.

>>> class Here: combine = staticmethod(lambda a: a + np.array([1., 0.]))
>>> Wd, bd, Wu, bu = np.eye(1, 2), np.zeros(1), 3 * np.eye(2, 1), np.zeros(2)
>>> Pfeiffer().apply(np.array([[1., 2.]]), Here, Wd=Wd, bd=bd, Wu=Wu, bu=bu)
array([[7., 2.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, choice
from minipeft.methods.bottleneck.houlsby import Houlsby
from minipeft.model.activations import ACTIVATIONS


@dataclass(frozen=True)
class Pfeiffer(Houlsby):
    """A bottleneck after every feed-forward, reading the residual sum."""

    targets: str = "mlp.out"
    f: str = choice(*ACTIVATIONS, default="relu", varied=False)

    def apply(self, a: Any, here: Here, **arrays: Any) -> Any:
        return a + self.bottleneck(here.combine(a), **arrays)
