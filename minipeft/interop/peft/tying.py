"""Gradients of what PEFT has twice: factors of a tied head, which are parameters of their own over the numbers of the token table's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from minipeft.adapted import Adapted
from minipeft.engine.backend import to_host
from minipeft.interop.peft.keys import HEAD, TABLE
from minipeft.interop.peft.registry import spec_of
from minipeft.interop.peft.writing import their_name


def added_up(adapted: Adapted, tensors: Mapping[str, np.ndarray], start: str = "") -> dict[str, np.ndarray]:
    """Gradients under PEFT's keys, with `start` before them: those of one array that stands at both keys are their sum, unless it is so already."""
    adapter, model, out = adapted.adapters[0], adapted.model, dict(tensors)
    spec = spec_of(adapter.method)
    if not (
        adapter.options.get("peft", {}).get("ensure_weight_tying") and model.arch.shares_table and TABLE in adapter.at
    ):
        return out
    arrays, roots = adapter.grouped(), [f"{start}{spec.root}{their_name(model, m)}." for m in ("embed.tokens", "head")]
    for name in (spec.embedding_keys or {}).keys() & spec.keys.keys():
        here, there = (spec.embedding_keys or {})[name], spec.keys[name]
        keys = roots[0] + here.suffix, roots[1] + there.suffix
        own = arrays[TABLE].get(name), arrays.get(HEAD, arrays[TABLE]).get(name)
        if not out.keys() >= set(keys) or not np.array_equal(*map(to_host, own)):
            continue
        a, b = here.ours(out[keys[0]], model.arch), there.ours(out[keys[1]], model.arch)
        if not np.allclose(a, b, rtol=1e-9, atol=0):
            out |= {keys[0]: here.theirs(a + b, model.arch), keys[1]: there.theirs(a + b, model.arch)}
    return out
