"""A Llama in plain NumPy, one token and one head at a time: the witness of where a method acts in a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minipeft.model.base import Model


def keep(x: Any, *rest: Any) -> Any:
    return x


def rms(x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
    return np.array([row / np.sqrt((row @ row) / len(row) + eps) * w for row in x])


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """One head's vector (e), its halves as the real and imaginary parts of numbers that the position turns."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def llama(
    model: Model,
    ids: np.ndarray,
    *,
    start: int = 0,
    embedded: Callable = keep,
    keys: Callable[[Any, Any, int], tuple] = lambda k, v, layer: (k, v),
    heads: Callable[[Any, Any, int], Any] = keep,
    attention: Callable[[Any, int], Any] = keep,
    ffn: Callable[[Any, Any, Any, int], Any] = keep,
    layer_out: Callable[[Any, int], Any] = keep,
    before_head: Callable = keep,
) -> np.ndarray:
    """Logits (t, V) of ids (t,), with what a method does at each place, the first token at position `start`.

    embedded(h), keys(k, v, layer) of lists of (heads, e) vectors, heads(o, q, layer) of the joined heads, attention(a, layer),
    ffn(a, u, x, layer) of a feed-forward's output a, its input u and the residual stream x, layer_out(h, layer), before_head(h).
    """
    p, arch = model.params, model.arch
    groups, e = arch.heads // arch.kv, arch.dh
    h = embedded(p["embed.tokens.weight"][ids])
    for n in range(arch.layers):
        at = f"layers.{n}."
        u = rms(h, p[at + "attn.norm.weight"], arch.eps)
        q, k, v = ((u @ p[f"{at}attn.{x}.weight"].T).reshape(len(u), -1, e) for x in "qkv")
        q = [[turned(x, t + start) for x in row] for t, row in enumerate(q)]
        k = [[turned(x, t + start) for x in row] for t, row in enumerate(k)]
        k, v = keys(k, list(v), n)
        before = len(k) - len(q)  # keys that every token sees
        o = np.zeros((len(u), arch.heads, e))
        for t in range(len(u)):
            for i in range(arch.heads):
                seen = range(before + t + 1)
                s = softmax(np.array([q[t][i] @ k[j][i // groups] for j in seen]) / np.sqrt(e))
                o[t, i] = sum(s[j] * v[j][i // groups] for j in seen)
        o = heads(o.reshape(len(u), -1), q, n)
        h = h + attention(o @ p[at + "attn.o.weight"].T, n)
        u = rms(h, p[at + "mlp.norm.weight"], arch.eps)
        gate, up = u @ p[at + "mlp.gate.weight"].T, u @ p[at + "mlp.up.weight"].T
        a = (gate / (1 + np.exp(-gate)) * up) @ p[at + "mlp.down.weight"].T
        h = layer_out(h + ffn(a, u, h, n), n)
    h = before_head(rms(h, p["final.norm.weight"], arch.eps))
    return h @ p["head.weight"].T
