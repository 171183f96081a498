"""(IA)³: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning. Liu et al. 2022, https://arxiv.org/abs/2205.05638

    y = l ∘ (x Wᵀ + b),   W' = diag(l) W,   b' = l ∘ b     keys and values    (paper, §3.3)
    y = (l_ff ∘ x) Wᵀ + b,   W' = W diag(l_ff)             the feed-forward's second linear; of patches whole channels

Merges   exactly: W' and b' are ordinary.
Differs  Where queries, keys and values are one linear (GPT-2) HF peft, followed here, scales all three; the paper
         scales keys and values. HF peft's default for BERT also scales the input of the attention's output linear: give
         targets with attn.o.weight, and inputs "attn.o.weight mlp.down.weight". A base without a bias gets none.
         LyCORIS scales W alone, and leaves b.

>>> IA3().change(l=np.array([1., 10.])).onto(np.array([[1., 2.], [3., 4.]]))
array([[ 1.,  2.],
       [30., 40.]])
>>> IA3().change(l_ff=np.array([1., 10.])).onto(np.array([[1., 2.], [3., 4.]]))
array([[ 1., 20.],
       [ 3., 40.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Method, fact, fill, globbed, scaled, trained


def on_input(method: Any, site: Any) -> bool:
    """Whether the site is among `inputs`."""
    every = {site.name, *site.params}
    return any(site.name in globbed(every, pattern) for pattern in method.inputs.split())


@dataclass(frozen=True)
class IA3(Method):
    """Trained scales on keys, values and the inner feed-forward activation."""

    name = "ia3"
    targets: str = "attn.k.weight attn.v.weight attn.qkv.weight cross.k.weight cross.v.weight mlp.down.weight"
    takes = "linears"
    inputs: str = "mlp.down.weight"  # globs over site names, like targets: those whose input is scaled

    on_input = fact(on_input)
    l = trained("out", start=fill(1), when="not on_input")
    l_ff = trained("in / pixels", start=fill(1), when="on_input")

    def change(self, *, l: Any = None, l_ff: Any = None) -> Any:
        return scaled(out=l, in_=l_ff)
