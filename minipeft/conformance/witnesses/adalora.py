"""AdaLoRA: the change is s Σᵢ λᵢ pᵢ qᵢᵀ, with s = α / (r + ε), or r / (r + ε) where α is not positive."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipeft.conformance.witnesses import Tensors, each


def closed(m: Any, t: Tensors) -> Tensors:
    s = (m.alpha if m.alpha > 0 else m.r) / (m.r + m.eps)
    W = t["W"] + s * sum(t["lam"][i] * np.outer(t["P"][:, i], t["Q"][i]) for i in range(len(t["lam"])))
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


def added(m: Any, a: Tensors) -> Tensors:
    """By P of ‖Pᵀ P − I‖: P D / ‖D‖, times 2; the mean over two of them."""
    k = len(a["lam"])
    D, E = a["P"].T @ a["P"] - np.eye(k), a["Q"] @ a["Q"].T - np.eye(k)
    d, e = (2.0, 2.0) if m.orth == "squared" else (1 / np.sqrt((D**2).sum()), 1 / np.sqrt((E**2).sum()))
    return dict(P=m.gamma * d * a["P"] @ D, Q=m.gamma * e * E @ a["Q"])


def sensed(m: Any, a: Tensors, g: Tensors, kept: dict[Any, Any]) -> None:
    """Every number's averages, one number at a time."""
    for name, w in a.items():
        for at in np.ndindex(w.shape):
            I, (mean, spread) = abs(w[at] * g[name][at]), kept.get((name, at), (0.0, 0.0))
            mean = m.beta1 * mean + (1 - m.beta1) * I
            kept[name, at] = mean, m.beta2 * spread + (1 - m.beta2) * abs(I - mean)


def before(m: Any, t: int, T: int, a: Tensors, g: Tensors, fixed: Tensors, kept: dict[Any, Any]) -> Tensors:
    if m.sensitivity == "before" and t < T - m.tfinal:
        sensed(m, a, g, kept)
    return g


def after(m: Any, t: int, T: int, a: Tensors, g: Tensors, fixed: Tensors, kept: dict[Any, Any]) -> Tensors:
    last, r = T - m.tfinal, len(a["lam"])
    if m.sensitivity == "after" and t < last:
        sensed(m, a, g, kept)
    if t == last or (m.tinit < t < last and t % m.deltaT == 0):
        share = min(max(1 - (t - m.tinit) / (last - m.tinit), 0), 1)
        budget = int(m.target_r + (r - m.target_r) * share**3)

        def score(i: int) -> float:
            def total(name: str, places: Any) -> float:
                return sum(np.prod(kept.get((name, at), (0.0, 0.0))) for at in places) / len(places)

            columns, rows = [(o, i) for o in range(len(a["P"]))], [(i, n) for n in range(a["Q"].shape[1])]
            return total("lam", [(i,)]) + total("P", columns) + total("Q", rows)

        ranked = sorted(range(r), key=lambda i: (-score(i), i))
        kept["chosen"] = np.isin(np.arange(r), ranked[:budget])
        a = a | dict(lam=a["lam"] * kept["chosen"])
    elif t > last:
        a = a | dict(lam=a["lam"] * kept["chosen"])
    return a
