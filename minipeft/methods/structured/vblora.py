"""VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks. Li, Han & Ji 2024, https://arxiv.org/abs/2405.15179

    W' = W + B A
    a = Σ_{s ∈ T} p_s bank_s,    p = softmax(z_T),    T = the `topk` largest of z      (paper, eq. 3)

where a is a piece of `vector_length` numbers: of a row of A, or of a column of B. Each piece has logits z of its own, and
all adapted matrices share the bank. With `only_topk` the numbers of T and the shares p but the last replace the logits.

Merges   exactly: W' is an ordinary weight.
Differs  nowhere in what is computed: logits outside of T have no gradient. Both factors start random, as in the paper and HF peft,
         so that W' is not W before training. With `only_topk` the last share is 1 − Σ p; HF peft takes logarithms of the
         shares, which is NaN where rounding makes the last one negative, and refuses to train: we train the bank.

>>> bank, z = np.array([[1., 2.], [3., 4.], [9., 9.]]), np.array([[[0., 0., -5.]]])
>>> VBLoRA(r=1, num_vectors=3, vector_length=2).change(bank=bank, logits_A=z, logits_B=z).onto(np.zeros((2, 2)))
array([[4., 6.],
       [6., 9.]])
"""

import math
from dataclasses import dataclass
from typing import Any

from minipeft.declare import (
    QUERY_VALUE, Method, at_least, common_width, count, distinct, divides, inverse, lowrank, normal, size, stored, trained, uniform, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.tensor import value


@dataclass(frozen=True)
class VBLoRA(Method):
    """Low-rank factors put together of vectors from one bank."""

    name = "vblora"
    targets: str = QUERY_VALUE
    takes = "linears"
    identity = False
    r: int = count(4, tried=2)
    num_vectors: int = count(256, small=7, tried=5)
    vector_length: int = count(256, small=common_width, tried=lambda arch: math.gcd(arch.d, 4))
    topk: int = at_least(1, 2, most="num_vectors", tried=3)
    only_topk: bool = False
    dropout: float = within("[0, 1)", 0.0)

    fits = divides("vector_length")
    bank = trained("num_vectors", "vector_length", start=uniform(bound=0.02), shared=True)
    m, n = size("in / vector_length"), size("out / vector_length")
    logits_A = trained("r", "m", "num_vectors", start=normal(0.1), when="not only_topk")
    logits_B = trained("n", "r", "num_vectors", start=normal(0.1), when="not only_topk")
    chosen_A = stored("r", "m", "topk", start=distinct("num_vectors"), when="only_topk", below="num_vectors")
    chosen_B = stored("n", "r", "topk", start=chosen_A.start, when="only_topk", below="num_vectors")
    shares_A = stored("r", "m", "topk - 1", start=inverse("topk"), when="only_topk")
    shares_B = stored("n", "r", "topk - 1", start=shares_A.start, when="only_topk")

    def _pieces(self, bank: Any, z: Any, T: Any = None, p: Any = None) -> Any:
        """Pieces (m, n, vector_length), from logits (m, n, num_vectors) or from what was chosen of them."""
        if z is not None:
            T = xp.argsort(-value(z), axis=-1, kind="stable")[..., : self.topk]
            m, n = xp.ogrid[: T.shape[0], : T.shape[1]]
            p = ops.softmax(ops.getitem(z, index=(m[..., None], n[..., None], T)))
        else:
            p = ops.concatenate(p, 1 - ops.sum(p, axis=-1, keepdims=True), axis=-1)
        return ops.sum(p[..., None] * ops.take(bank, ids=T), axis=-2)

    def change(self, *, bank: Any, logits_A: Any = None, logits_B: Any = None, **kept: Any) -> Any:
        A = self._pieces(bank, logits_A, kept.get("chosen_A"), kept.get("shares_A"))
        B = ops.swapaxes(self._pieces(bank, logits_B, kept.get("chosen_B"), kept.get("shares_B")))
        return lowrank(ops.reshape(B, shape=(-1, self.r)), ops.reshape(A, shape=(self.r, -1)))
