"""Poly: Combining Modular Skills in Multitask Learning. Ponti et al. 2022, https://arxiv.org/abs/2202.13914

    y = x Wᵀ + b + (x A_t) B_t / r                                            t the task of x's row
    A_t = [Σ_k w_1k A_1k; …; Σ_k w_Qk A_Qk],    B_t = [Σ_k w_1k B_1k, …, Σ_k w_Qk B_Qk]
    w_qk = p_qk / Σ_k p_qk,    p = σ(Z_t)

With n_splits = Q > 1, each part of the input and of the output has its own mixture of skills: multi-head routing, MHR
(Caccia et al. 2022, https://arxiv.org/abs/2211.03831). In training p = σ(Z_t + ln u − ln(1 − u)), u uniform: a relaxed
Bernoulli sample of temperature 1.

Merges   no: every row of a batch has its own weights. For one task, `of_task` gives W' − W.
Differs  Z is one for each adapted matrix, as in HF peft; others share it within a layer or the whole model. A and B are
         mixed before they are multiplied, so skills meet in cross terms. HF peft takes a negative task as counted from
         the end; we refuse it.

>>> poly = Poly(r=1, n_tasks=2, n_skills=2)
>>> A, B, Z = np.array([[[[2.]], [[4.]]]]), np.array([[[[1.]], [[3.]]]]), np.zeros((2, 2))
>>> poly.of_task(0, A=A, B=B, Z=Z).round(6)  # both skills count half: (1 + 2)(0.5 + 1.5)
array([[6.]])
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minipeft.declare import QUERY_VALUE, Here, Method, count, requires, size, trained, uniform
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.method import Base


@dataclass(frozen=True)
class Poly(Method):
    """Each task mixes low-rank skills in its own proportion."""

    targets: str = QUERY_VALUE
    takes = "linears"
    r: int = count(8, small=4, tried=2)
    n_tasks: int = count(1, tried=2)
    n_skills: int = count(4, small=3, tried=3)
    n_splits: int = count(1, small=2)

    c, e = size("in / n_splits"), size("out / n_splits")
    even = requires(
        "n_splits c == in and n_splits e == out", "n_splits must divide both widths, {out} and {in}, found {n_splits},"
    )
    A = trained("n_splits", "n_skills", "c", "r", start=uniform("c"))
    B = trained("n_splits", "n_skills", "r", "e")
    Z = trained("n_tasks", "n_splits n_skills", start=uniform(bound=1e-3))

    def _mix(self, p: Any, A: Any, B: Any) -> tuple[Any, Any]:
        """A_t (n, in, r) and B_t (n, r, out) from the shares p (n, Q, K) of the skills."""
        n, Q, K = p.shape
        c, r, e = A.shape[2], A.shape[3], B.shape[3]
        w = (p / (ops.sum(p, axis=-1, keepdims=True) + 1e-12))[:, :, None]  # (n, Q, 1, K)
        A = ops.reshape(w @ ops.reshape(A, shape=(Q, K, c * r)), shape=(n, Q * c, r))
        B = ops.reshape(w @ ops.reshape(B, shape=(Q, K, r * e)), shape=(n, Q, r, e))
        return A, ops.reshape(ops.swapaxes(B, a=1, b=2), shape=(n, r, Q * e))

    def _logits(self, Z: Any, ids: Any) -> Any:
        return ops.reshape(ops.take(Z, ids=ids), shape=(len(ids), self.n_splits, self.n_skills))

    def of_task(self, task: int, *, A: Any, B: Any, Z: Any) -> Any:
        """W' − W (out, in) of one task, as it is in evaluation."""
        A, B = self._mix(ops.sigmoid(self._logits(Z, xp.asarray([task]))), A, B)
        return ops.swapaxes(A @ B)[0] / self.r

    def forward(self, x: Any, base: Base, here: Here, *, A: Any, B: Any, Z: Any) -> Any:
        """Every row through the weights of its task."""
        z = self._logits(Z, here.tasks(self.n_tasks, x.shape[0]))
        if here.train:
            tiny = np.finfo(z.dtype).eps
            u = xp.clip(here.random(z.shape), tiny, 1 - tiny)
            z = z + (xp.log(u) - xp.log1p(-u)).astype(z.dtype)
        A, B = self._mix(ops.sigmoid(z), A, B)
        y = base(x)
        h = ops.reshape(x, shape=(x.shape[0], -1, x.shape[-1]))  # a classifier's input is (b, in)
        return y + ops.reshape(h @ A @ B / self.r, shape=y.shape)
