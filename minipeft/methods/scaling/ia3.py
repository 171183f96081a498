"""(IA)³: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning. Liu et al. 2022, https://arxiv.org/abs/2205.05638

    y = l ∘ (x Wᵀ + b),   W' = diag(l) W,   b' = l ∘ b     keys and values    (paper, §3.3)
    y = (l_ff ∘ x) Wᵀ + b,   W' = W diag(l_ff)             the feed-forward's second linear

    l     (out)  trained   1, hence W' = W before training; only with a target not in `inputs`
    l_ff  (in)   trained   1; only with a target in `inputs`

Size     n numbers per adapted matrix, n being out on the output side and in on the input side.
Merges   exactly: W' and b' are ordinary.
Differs  Where queries, keys and values are one linear (GPT-2) HF peft, followed here, scales all three; the paper
         scales keys and values. HF peft's default for BERT also scales the input of the attention's output linear: give
         targets with attn.o.weight, and inputs "attn.o.weight mlp.down.weight". A base without a bias gets none.

>>> IA3().weight(np.array([[1., 2.], [3., 4.]]), l=np.array([1., 10.]))
array([[ 1.,  2.],
       [30., 40.]])
>>> IA3().weight(np.array([[1., 2.], [3., 4.]]), l_ff=np.array([1., 10.]))
array([[ 1., 20.],
       [ 3., 40.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minipeft.method import Base, Here, Method, Site, globbed


@dataclass(frozen=True)
class IA3(Method):
    """Trained scales on keys, values and the inner feed-forward activation."""

    targets: str = "attn.k.weight attn.v.weight attn.qkv.weight cross.k.weight cross.v.weight mlp.down.weight"
    inputs: str = "mlp.down.weight"  # globs over site names, like targets: those whose input is scaled
    takes: ClassVar[str] = "linears"
    name: ClassVar[str] = "ia3"
    usual_lr: ClassVar[float] = 3e-2

    def _on_input(self, site: Site) -> bool:
        every = {site.name, *site.params}
        return any(site.name in globbed(every, pattern) for pattern in self.inputs.split())

    def sizes(self, site: Site) -> dict[str, int]:
        return dict(n=site.shape[self._on_input(site)])

    def init(self, site: Site, rng: np.random.Generator) -> dict[str, Any]:
        return {"l_ff" if self._on_input(site) else "l": np.ones(self.sizes(site)["n"])}

    def weight(self, W: Any, *, l: Any = None, l_ff: Any = None) -> Any:
        return W * l[:, None] if l_ff is None else W * l_ff

    def bias(self, b: Any, *, l: Any = None, l_ff: Any = None) -> Any:
        return b if b is None or l is None else b * l

    def forward(self, x: Any, base: Base, here: Here, *, l: Any = None, l_ff: Any = None) -> Any:
        """Scales what goes in or comes out, not W."""
        return base(x) * l if l_ff is None else base(x * l_ff)
