"""Closed forms, written apart from the methods' files, with NumPy alone and without their helpers: the second witness.

Each takes the method, for its settings, and all tensors of a forward case by name; it gives the outputs by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import erf

from minipeft.conformance.places import held

Tensors = dict[str, np.ndarray]
CLOSED: dict[str, Callable[[Any, Tensors], Tensors]] = {}


def closed(f: Callable[[Any, Tensors], Tensors]) -> Callable[[Any, Tensors], Tensors]:
    """Enter a form under the name of its method."""
    CLOSED[f.__name__] = f
    return f


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def each(f: Callable[..., np.ndarray], *streams: np.ndarray) -> np.ndarray:
    """f of every token's vectors."""
    rows = [[f(*(s[i, t] for s in streams)) for t in range(streams[0].shape[1])] for i in range(len(streams[0]))]
    return np.array(rows)


def scale(m: Any) -> float:
    return m.alpha / (np.sqrt(m.r) if getattr(m, "rslora", False) else m.r)


@closed
def lora(m: Any, t: Tensors) -> Tensors:
    extra = scale(m) * t["c"] if "c" in t else 0.0
    return dict(y=each(lambda x: t["W"] @ x + t["b"] + scale(m) * (t["B"] @ (t["A"] @ x)) + extra, t["x"]))


CLOSED["lora_plus"] = CLOSED["eva"] = lora


@closed
def qlora(m: Any, t: Tensors) -> Tensors:
    """LoRA over the quantised weight, whose numbers have witnesses of their own."""
    return lora(m, t | {"W": held(m, t["W"])})


@closed
def pissa(m: Any, t: Tensors) -> Tensors:
    W = t["W"] + scale(m) * sum(
        np.outer(t["B"][:, i], t["A"][i]) - np.outer(t["B0"][:, i], t["A0"][i]) for i in range(m.r)
    )
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


CLOSED["lora_ga"] = pissa


@closed
def dora(m: Any, t: Tensors) -> Tensors:
    V = t["W"] + scale(m) * t["B"] @ t["A"]
    W = np.array([t["m"][i] * V[i] / np.sqrt((V[i] ** 2).sum()) for i in range(len(V))])
    extra = scale(m) * t["c"] if "c" in t else 0.0
    return dict(y=each(lambda x: W @ x + t["b"] + extra, t["x"]))


@closed
def adalora(m: Any, t: Tensors) -> Tensors:
    s = m.alpha / (m.r + m.eps)
    W = t["W"] + s * sum(t["lam"][i] * np.outer(t["P"][:, i], t["Q"][i]) for i in range(len(t["lam"])))
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


@closed
def osf(m: Any, t: Tensors) -> Tensors:
    W = t["W"] + t["U"] @ np.diag(t["S"]) @ t["V"] - t["U0"] @ np.diag(t["S0"]) @ t["V0"]
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


@closed
def loha(m: Any, t: Tensors) -> Tensors:
    W = t["W"] + m.alpha / m.r * (t["X1"] @ t["Y1"]) * (t["X2"] @ t["Y2"])
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


@closed
def ia3(m: Any, t: Tensors) -> Tensors:
    return dict(y=each(lambda x: t["l"] * (t["W"] @ x + t["b"]), t["x"]))


@closed
def vera(m: Any, t: Tensors) -> Tensors:
    out, in_ = t["W"].shape
    A, B = t["A"][:, :in_], t["B"][:out]
    return dict(y=each(lambda x: t["W"] @ x + t["b"] + t["lambda_b"] * (B @ (t["lambda_d"] * (A @ x))), t["x"]))


@closed
def fourierft(m: Any, t: Tensors) -> Tensors:
    """Σ_j c_j cos 2π(p k_j/out + q l_j/in) / (out·in), one wave after the other."""
    out, in_ = t["W"].shape
    p, q = np.arange(out)[:, None], np.arange(in_)[None]
    rows, columns = t["rows"], t["cols"]
    waves = [c * np.cos(2 * np.pi * (p * k / out + q * l / in_)) for c, k, l in zip(t["c"], rows, columns, strict=True)]
    W = t["W"] + m.scaling * sum(waves) / (out * in_)
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


@closed
def shira(m: Any, t: Tensors) -> Tensors:
    W = t["W"].copy()
    for v, i, j in zip(t["v"], t["rows"], t["cols"], strict=True):
        W[i, j] += m.scale * v
    return dict(y=each(lambda x: W @ x + t["b"], t["x"]))


@closed
def bitfit(m: Any, t: Tensors) -> Tensors:
    b = t["b"].copy()
    b[: len(t["delta"])] += t["delta"]
    return dict(y=each(lambda x: t["W"] @ x + b, t["x"]))


@closed
def full(m: Any, t: Tensors) -> Tensors:
    return dict(y=each(lambda x: t["W1"] @ x + t["b"], t["x"]))


@closed
def trainable_tokens(m: Any, t: Tensors) -> Tensors:
    W = t["W"].copy()
    for row, token in zip(t["T"], m.tokens, strict=True):
        W[token] = row
    return dict(y=np.array([[W[i] for i in ids] for ids in t["ids"]]))


@closed
def poly(m: Any, t: Tensors) -> Tensors:
    y = []
    for x, task in zip(t["x"], t["task_ids"], strict=True):
        z = sigmoid(t["Z"][task])
        z = z.reshape(m.n_splits, m.n_skills)
        z = z / (z.sum(axis=1, keepdims=True) + 1e-12)
        A = np.concatenate([np.einsum("s,sir->ir", z[k], t["A"][k]) for k in range(m.n_splits)])
        B = np.concatenate([np.einsum("s,sro->ro", z[k], t["B"][k]) for k in range(m.n_splits)], axis=1)
        y.append([t["W"] @ row + t["b"] + (row @ A @ B) / m.r for row in x])
    return dict(y=np.array(y))


def bottleneck(m: Any, t: Tensors, h: np.ndarray, end: str = "") -> np.ndarray:
    return t["Wu" + end] @ ACTIVATIONS[m.f](t["Wd" + end] @ h + t["bd" + end]) + t["bu" + end]


@closed
def houlsby(m: Any, t: Tensors) -> Tensors:
    return dict(y=each(lambda a: a + bottleneck(m, t, a), t["a"]))


@closed
def pfeiffer(m: Any, t: Tensors) -> Tensors:
    return dict(y=each(lambda a, x: a + bottleneck(m, t, x + a), t["a"], t["x"]))


@closed
def parallel_adapter(m: Any, t: Tensors) -> Tensors:
    s = m.s * (t["g"][0] if "g" in t else 1.0)
    return dict(y=each(lambda a, h: a + s * bottleneck(m, t, h), t["a"], t["u" if m.reads == "input" else "x"]))


@closed
def adapter_fusion(m: Any, t: Tensors) -> Tensors:
    def at(a: np.ndarray, x: np.ndarray) -> np.ndarray:
        z = [bottleneck(part, t, x + a, str(k)) for k, part in enumerate(m.adapters)]
        ask = t["Q"] @ (x + a if m.query == "input" else a) + t["q"]
        weights = softmax(np.array([ask @ (t["Kz"] @ zk + t["kz"]) for zk in z]))
        return a + sum(w * (t["Vf"] @ zk) for w, zk in zip(weights, z, strict=True))

    return dict(y=each(at, t["a"], t["x"]))


@closed
def invertible(m: Any, t: Tensors) -> Tensors:
    half = t["h"].shape[-1] // 2

    def mlp(h: np.ndarray, W: str, b: str) -> np.ndarray:
        return t[W + "2"] @ ACTIVATIONS[m.f](t[W + "1"] @ h + t[b + "1"]) + t[b + "2"]

    def turn(h: np.ndarray) -> np.ndarray:
        y1 = h[:half] + mlp(h[half:], "F", "c")
        return np.concatenate([y1, h[half:] + mlp(y1, "G", "k")])

    def back(y: np.ndarray) -> np.ndarray:
        x2 = y[half:] - mlp(y[:half], "G", "k")
        return np.concatenate([y[:half] - mlp(x2, "F", "c"), x2])

    return dict(y=each(turn, t["h"]), z=each(back, t["u"]))


@closed
def loreft(m: Any, t: Tensors) -> Tensors:
    n = t["h"].shape[1]
    y = t["h"].copy()
    for i in range(len(y)):
        for k in range(n):
            late, early = k >= n - m.n_suf, k < m.n_pre
            if late or early:
                end = "_s" if late and "W_s" in t else ""
                h, R = t["h"][i, k], t["R" + end]
                y[i, k] = h + R.T @ (t["W" + end] @ h + t["b" + end] - R @ h)
    return dict(y=y)


@closed
def llama_adapter(m: Any, t: Tensors) -> Tensors:
    q, groups = t["q"], t["q"].shape[1] // 2
    k, v = ((t["A"] @ t[W].T).reshape(m.K, 2, -1) for W in ("Wk", "Wv"))
    y = np.zeros_like(t["o"]).reshape(*t["o"].shape[:2], q.shape[1], -1)
    for i in range(len(q)):
        for h in range(q.shape[1]):
            for s in range(q.shape[2]):
                w = softmax(k[:, h // groups] @ q[i, h, s] / np.sqrt(q.shape[-1]))
                y[i, s, h] = t["g"][0] * (w @ v[:, h // groups])
    return dict(y=t["o"] + y.reshape(t["o"].shape))


@closed
def prefix_tuning(m: Any, t: Tensors) -> Tensors:
    """The second of two layers: rows 2 and 3 of what is flat."""
    E = t["E"] if "A1" not in t else np.tanh(t["E"] @ t["A1"].T + t["c1"]) @ t["A2"].T + t["c2"]
    b, groups, _, e = t["k"].shape
    rows = E.reshape(m.p, -1, groups, e)
    out = {}
    for i, name in enumerate("kv"):
        prefix = np.array([rows[:, i].transpose(1, 0, 2)] * b)
        out[name] = np.concatenate([prefix, t[name]], axis=2)
    return out


@closed
def prompt_tuning(m: Any, t: Tensors) -> Tensors:
    return dict(y=np.array([np.concatenate([t["P"], h]) for h in t["h"]]))


@closed
def p_tuning(m: Any, t: Tensors) -> Tensors:
    def one_way(x: np.ndarray, n: int, way: int) -> np.ndarray:
        Wx, Wh, bx, bh = (t[f"{name}{n}"][way] for name in ("Wx", "Wh", "bx", "bh"))
        h = c = np.zeros(Wh.shape[1])
        out = []
        for row in x if way == 0 else x[::-1]:
            i, f, g, o = np.split(Wx @ row + bx + Wh @ h + bh, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
        return np.array(out if way == 0 else out[::-1])

    x = t["E0"]
    if m.encoder == "mlp":
        for n in (1, 2):
            x = np.maximum(x @ t[f"W{n}"].T + t[f"b{n}"], 0)
        P = x @ t["W3"].T + t["b3"]
    else:
        for n in range(m.layers):
            x = np.concatenate([one_way(x, n, 0), one_way(x, n, 1)], axis=1)
        P = np.maximum(x @ t["U1"].T + t["u1"], 0) @ t["U2"].T + t["u2"]
    return dict(y=np.array([np.concatenate([P, h]) for h in t["h"]]))


@closed
def x_lora(m: Any, t: Tensors) -> Tensors:
    def at(x: np.ndarray, h: np.ndarray) -> np.ndarray:
        z = h
        for i in range(m.depth):
            z = t[f"V{i}"] @ z + t[f"v{i}"]
            z = np.maximum(z, 0) if i < m.depth - 1 else z
        g = softmax(z / m.temperature) if m.softmax else z
        if m.top_k:
            g = np.where(np.argsort(np.argsort(-g, kind="stable")) < m.top_k, g, 0)
        if m.top_k_softmax:
            live = g != 0
            g = np.where(live, np.exp(g - g[live].max()), 0)
            g = g / g.sum()
        y = t["W"] @ x + t["b"]
        for k, e in enumerate(m.experts):
            y = y + m.gamma * scale(e) * g[k] * (t[f"B{k}"] @ (t[f"A{k}"] @ x))
        return y

    return dict(y=each(at, t["x"], t["h"]))


@closed
def ladder_side(m: Any, t: Tensors) -> Tensors:
    from math import gcd

    def rms(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * w

    y = []
    for h0, h1 in zip(t["h0"], t["h1"], strict=True):
        g = sigmoid(t["layers_alpha"][0] / m.T)
        s = g * h0 @ t["embed_D"].T + (1 - g) * h1 @ t["layers_D"].T
        u, w = rms(s, t["layers_n1"]), s.shape[1]
        heads = gcd(4, w)
        q, k, v = ((u @ t[f"layers_{W}"].T).reshape(len(u), heads, -1) for W in ("Wq", "Wk", "Wv"))
        o = np.zeros((len(u), heads, w // heads))
        for i in range(len(u)):
            for j in range(heads):
                o[i, j] = softmax(k[: i + 1, j] @ q[i, j] / np.sqrt(w // heads)) @ v[: i + 1, j]
        s = s + o.reshape(len(u), w) @ t["layers_Wo"].T
        s = s + ACTIVATIONS[m.f](rms(s, t["layers_n2"]) @ t["layers_W1"].T) @ t["layers_W2"].T
        y.append(rms(s, t["final_n"]) @ t["final_U"].T)
    return dict(y=np.array(y))
