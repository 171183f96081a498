"""MPT: Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning. Wang et al. 2023, https://arxiv.org/abs/2303.02861

    E' = [P ⊙ (U_t V_t); Emb(ids)]                                            t the task of the row (paper, §3)

P is one prompt for all tasks, U_t (p, r) and V_t (r, d) are a task's own: a matrix of rank r that scales P elementwise.

Merges     no: the sequence grows. For one task, `of_tasks` gives the prompt that remains.
Positions  As prompt tuning. An encoder-decoder has p rows in each stack, of one P and U; V is the same for both.
Differs    The paper has r = 1, a prompt in the encoder alone, and distils P from a teacher prompt of every task; HF peft
           has two stacks, as here, and trains all together; targets="encoder.embed.tokens.out" is the paper's place.
           U and V start at N(0, 0.02²), as in HF peft, so that the prompt starts close to 0. `from_source` has its starts
           from a trained adapter; with factors="mean" U and V are averaged apart, not their products.

>>> class Here: prefill, index, tokens, tasks = True, 0, Tokens(1), lambda n, rows: np.array([1])
>>> U, V = np.array([[[1.]], [[2.]]]), np.array([[[1., 1.]], [[1., 3.]]])
>>> MPT(p=1, n_tasks=2, r=1).apply(np.array([[[1., 2.]]]), Here, P=np.array([[5., 6.]]), U=U, V=V)
array([[[10., 36.],
        [ 1.,  2.]]])
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from minipeft.declare import Bad, Here, beginning, count, either, normal, trained, words
from minipeft.engine import ops
from minipeft.methods.prompt.prompt_tuning import PromptTuning

ROWS = "p sites"


@dataclass(frozen=True)
class MPT(PromptTuning):
    """A prompt that every task scales by a matrix of low rank."""

    targets: str = "encoder.embed.tokens.out embed.tokens.out"
    r: int = count(1, tried=2)
    n_tasks: int = count(1, tried=2)

    P = trained(ROWS, "d", start=either("start == 'normal'", normal(), words(ROWS, "text")), shared=True)
    U = trained("n_tasks", ROWS, "r", start=normal(0.02), shared=True)
    V = trained("n_tasks", "r", "d", start=normal(0.02), shared=True)

    def of_tasks(self, ids: Any, *, P: Any, U: Any, V: Any) -> Any:
        """P ⊙ (U_t V_t) for these tasks: (len(ids), rows of P, d)."""
        return P * (ops.take(U, ids=ids) @ ops.take(V, ids=ids))

    def apply(self, h: Any, here: Here, *, P: Any, U: Any, V: Any) -> Any:
        if not here.prefill:
            return super().apply(h, here, P=P)
        own, ids = slice(here.index * self.p, (here.index + 1) * self.p), here.tasks(self.n_tasks, h.shape[0])
        return super().apply(h, here, P=self.of_tasks(ids, P=P[own], U=U[:, own], V=V))

    @classmethod
    def from_source(cls, source: Any, factors: str | int = "fresh", **fields: Any) -> Any:
        """One that begins with the P of a trained `Adapter`, and "fresh" U and V, their "mean", or those of a task."""
        P, U, V = (source.arrays[f":{name}"] for name in "PUV")
        if factors not in ("fresh", "mean", *range(len(U))):
            raise Bad(f"{cls.name}: factors must be fresh, mean or a task in 0 … {len(U) - 1}, found {factors!r}")
        some = slice(None) if factors == "mean" else [factors]
        more = {k: a[some].mean(axis=0, keepdims=True) for k, a in dict(U=U, V=V).items() if factors != "fresh"}
        made = dataclasses.replace(source.method, **(dict(start="normal", text=(), n_tasks=1) | fields))
        return beginning(made, {"": dict(P=P) | more})
