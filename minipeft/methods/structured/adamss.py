"""AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning. Zheng et al. 2025, https://openreview.net/forum?id=8ZdWmpYxT0

    [W, b] ≈ U Σ V            the q = min(r, out, in + 1) largest singular triples; V is split into V (q, in) and v (q)
    W'_i = W_i + B_i A_c V,   b'_i = b_i + B_i A_c v         c = c_i is the cluster of row i of U, by k-means

A_c starts as the first ρ_c = min(ρ, rows in c) right singular vectors of the rows of U in c, of which `dynamic` takes those
with σ² > threshold σ_1²; what is beyond counts for nothing. With `asa` the clusters of all matrices compete: every `interval`
steps from `first` to `last`, T stay trained, those of the largest mean(Ī Ū) of A_c plus that of its rows of B. There I =
|w ∂L/∂w|, w after the step, Ū ← β2 Ū + (1 − β2)|I − Ī|, Ī ← β1 Ī + (1 − β1) I, from 0 after each choice, and T falls from
all to `target` as (1 − (t − first)/(last − first))^γ, t from 0.

Merges   exactly, into W and b.
Differs  HF peft finds U and V as here, by a randomised decomposition from `seed`, but in float32; A starts by another one, in nearly
         these spaces. Which row is in which cluster it does not save, but finds anew: where q = out that is rounding's choice. It
         and the authors keep T − 1 clusters, none for T = 1; theirs are judged by one step alone, and by |I − Ī| of the new Ī.

>>> W, e = np.diag([2., 1.]), np.eye(2)
>>> AdaMSS(r=2).change(A=np.array([[e[0]], [e[1]]]), B=np.array([[3.], [5.]]), V=e, c=np.array([1, 1]), ranks=np.ones(2)).onto(W)
array([[2., 3.],
       [0., 6.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import (
    QUERY_VALUE, Method, Step, at_least, count, fact, found, free, keeps, lowrank, positive, requires, shift, size, stored,
    trained, when, within,
)  # fmt: skip
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.engine.factors import clusters, finite, randomised
from minipeft.torch_random import TorchGenerator


def subspaces(method: Any, facts: Any) -> dict[str, Any]:
    """V and v, c, the ranks ρ_c and A."""
    W, bias = finite(f"{method.name}: {facts['site']}", facts.W), facts["site"].removesuffix("weight") + "bias"
    M = np.column_stack([W, facts.param(bias)]) if facts["biased"] else W
    U, _, V = randomised(M, TorchGenerator(method.seed).normal((min(M.shape), facts["q"])).astype(float))
    c = clusters(U.astype(np.float32), facts["K"], steps=10, seed=123456789)
    A, ranks = np.zeros((facts["K"], facts["p"], facts["q"])), np.zeros(facts["K"], int)
    for k in range(facts["K"]):
        _, S, right = np.linalg.svd(U[c == k], full_matrices=False)
        least = method.threshold * S[:1] ** 2 if method.dynamic else -1
        ranks[k] = n = min((least < S**2).sum(), facts["p"])
        A[k, :n] = right[:n]
    return dict(A=A, V=V[:, : W.shape[1]], v=V[:, -1], c=c, ranks=ranks)


FOUND = found(subspaces, "of the weight")


@dataclass(frozen=True)
class AdaMSS(Method):
    """A low-rank change of each cluster of outputs, within W's first right singular directions."""

    name = "adamss"
    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(100, small=6, tried=4)
    subspaces: int = count(5, most=1024, tried=3)
    rank: int = count(1, tried=2)  # ρ
    dynamic: bool = False
    threshold: float = within("[0, 1)", 0.1)
    seed: int = free(0)
    asa: bool = False
    target: int = count(50)
    first: int = at_least(0, 50)
    last: int = at_least(1, 1000)
    interval: int = at_least(1, 100)
    beta1: float = within("[0, 1)", 0.85)
    beta2: float = within("[0, 1)", 0.85)
    gamma: float = positive(3.0)

    order = requires("first < last", "first must be less than last, found {first} and {last}", when="asa")
    biased = fact(lambda method, site: site.name.removesuffix("weight") + "bias" in site.params)
    q, K = size("min(r, out, in + biased)"), size("min(subspaces, out)")
    p = size("min(rank, q)")
    A = trained("K", "p", "q", start=FOUND)
    B = trained("out", "p")
    V = stored("q", "in", start=FOUND)
    v = stored("q", start=FOUND, when="biased")
    c = stored("out", start=FOUND, below="K")
    ranks = stored("K", start=FOUND, below="p + 1")
    I, U, still, live = keeps(), keeps(), keeps(), keeps(truth=True)  # Ī, Ū; as what is not trained stays; what is

    def change(self, *, A: Any, B: Any, V: Any, c: Any, ranks: Any, v: Any = None) -> Any:
        A = A * (xp.arange(A.shape[1]) < ranks[:, None])[:, :, None]
        rows = ops.sum(B[:, :, None] * ops.getitem(A, index=c), axis=1)
        return lowrank(rows, V) + shift(None if v is None else ops.sum(rows * v, axis=1))

    @when("asa")
    def after_step(self, step: Step) -> None:
        t, state = step.t - 1, step.state
        score: dict[str, Any] = {}
        sites = {s: own for s, own in step.theta.items() if "A" in own}
        rows = {s: dict(A=xp.arange(len(own["A"])), B=step.stored[s]["c"]) for s, own in sites.items()}
        every = [(s, n, f"{s}:{n}", c) for s, own in rows.items() for n, c in own.items()]
        for site, n, at, c in every:
            own, ranks = sites[site], step.stored[site]["ranks"]
            live = state.get(f"live/{at}", xp.ones(own[n].shape, bool))
            w = own[n] = xp.where(live, own[n], state.get(f"still/{at}", own[n]))
            if self.first <= t <= self.last:
                I, mean = abs(w * step.grads[site][n]) * live, state.get(f"I/{at}", 0 * w)
                state[f"U/{at}"] = self.beta2 * state.get(f"U/{at}", 0 * w) + (1 - self.beta2) * abs(I - mean)
                state[f"I/{at}"] = self.beta1 * mean + (1 - self.beta1) * I
                S = (state[f"I/{at}"] * state[f"U/{at}"]).reshape(len(w), -1).sum(axis=1)
                entries = xp.bincount(c, minlength=len(ranks)) * ranks * (w[0].size // own["B"].shape[1])
                score[site] = score.get(site, 0) + xp.bincount(c, S, len(ranks)) / xp.maximum(entries, 1)
        if score and t % self.interval == 0:
            ordered = xp.sort(xp.concatenate(list(score.values())))
            left = (1 - (t - self.first) / (self.last - self.first)) ** self.gamma
            least = ordered[max(len(ordered) - int(self.target + (len(ordered) - self.target) * left), 0)]
            for site, n, at, c in every:
                w = sites[site][n]
                live = (score[site] >= least)[c].reshape(-1, *[1] * (w.ndim - 1)) & state.get(f"live/{at}", w == w)
                state |= {f"live/{at}": live, f"still/{at}": w, f"I/{at}": 0 * w, f"U/{at}": 0 * w}
