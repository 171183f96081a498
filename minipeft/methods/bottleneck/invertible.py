"""Invertible adapter: MAD-X, An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer. Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00052

    y₁ = x₁ + F(x₂),   y₂ = x₂ + G(y₁)        after the embedding             (paper, eq. 5; NICE, Dinh et al. 2014)
    x₂ = y₂ − G(y₁),   x₁ = y₁ − F(x₂)        before the output matrix        (eq. 6)
    F(h) = F2 f(F1 h + c1) + c2,  G(h) = G2 f(G1 h + k1) + k2

where x₁, x₂ are the two halves of a vector. One pair F, G serves both ends: what the text's vectors are turned into
is turned back before it is compared with the words of the vocabulary.

Merges   no: f is not linear.
Differs  The paper's model is BERT with a masked-language head; the same is done to any model here, to both stacks of an
         encoder-decoder, and a model without an output matrix over words has the embedding's side alone. AdapterHub
         leaves the inverse out with heads that are not its own.

>>> one, nil = np.ones((1, 1)), np.zeros(1)
>>> pair = dict(F1=one, c1=nil, F2=one, c2=nil, G1=one, k1=nil, G2=one, k2=nil)
>>> y = Invertible(f="relu").turn(np.array([[1., 2.]]), **pair); y
array([[3., 5.]])
>>> Invertible(f="relu").back(y, **pair)
array([[1., 2.]])
"""

from dataclasses import dataclass
from typing import Any

from minipeft.declare import Here, Method, Unfit, at_least, choice, normal, requires, size, trained, zero_if
from minipeft.engine import ops
from minipeft.model.activations import ACTIVATIONS

FIRST, LAST = normal(0.02), zero_if("start == 'zero'", normal(0.02))


@dataclass(frozen=True)
class Invertible(Method):
    """A bijection of the embedding space, undone before the output matrix."""

    targets: str = "*embed.out head.in"
    takes = "vectors as wide as the model"
    reduction: float = at_least(1 / 64, 2.0, tried=5.0)
    f: str = choice(*ACTIVATIONS, default="relu", varied=False)
    start: str = choice("normal", "zero")  # how F2 and G2 begin

    half, m = size("d / 2"), size("max(1, int(half // reduction))")
    even = requires("d == 2 half", "expected a model of even width, to be halved, found {d}", error=Unfit)
    F1 = trained("m", "half", start=FIRST, shared=True)
    c1 = trained("m", shared=True)
    F2 = trained("half", "m", start=LAST, shared=True)
    c2 = trained("half", shared=True)
    G1 = trained("m", "half", start=FIRST, shared=True)
    k1 = trained("m", shared=True)
    G2 = trained("half", "m", start=LAST, shared=True)
    k2 = trained("half", shared=True)

    @property
    def identity(self) -> bool:  # type: ignore[override]
        """Only with F2 = G2 = 0: an embedding that is turned and turned back has been through the model meanwhile."""
        return self.start == "zero"

    def _mlp(self, h: Any, W1: Any, b1: Any, W2: Any, b2: Any) -> Any:
        return ops.linear(ACTIVATIONS[self.f](ops.linear(h, W1, b1)), W2, b2)

    def turn(self, x: Any, *, F1: Any, c1: Any, F2: Any, c2: Any, G1: Any, k1: Any, G2: Any, k2: Any) -> Any:
        """x (…, d) -> y (…, d)."""
        half = x.shape[-1] // 2
        y1 = x[..., :half] + self._mlp(x[..., half:], F1, c1, F2, c2)
        return ops.concatenate(y1, x[..., half:] + self._mlp(y1, G1, k1, G2, k2), axis=-1)

    def back(self, y: Any, *, F1: Any, c1: Any, F2: Any, c2: Any, G1: Any, k1: Any, G2: Any, k2: Any) -> Any:
        """The inverse of `turn`."""
        half = y.shape[-1] // 2
        x2 = y[..., half:] - self._mlp(y[..., :half], G1, k1, G2, k2)
        return ops.concatenate(y[..., :half] - self._mlp(x2, F1, c1, F2, c2), x2, axis=-1)

    def apply(self, h: Any, here: Here, **arrays: Any) -> Any:
        return (self.back if here.site == "head.in" else self.turn)(h, **arrays)
