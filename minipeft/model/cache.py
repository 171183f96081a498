"""Keys and values of earlier passes: what generation keeps instead of computing it again."""

from __future__ import annotations

from typing import Any

from minipeft.engine.backend import xp
from minipeft.engine.tensor import value


class Growing:
    """Keeps the keys and values of every pass behind those of the passes before.

    `encoder` is an encoder's output with its tokens, `memory` the keys and values that each site made of it, which do not change.
    """

    at: Any = None  # (t,) where the tokens of a pass stand among the keys; None: at their end

    def __init__(self) -> None:
        self.held: dict[str, tuple[Any, Any]] = {}
        self.memory: dict[str, tuple[Any, Any]] = {}
        self.encoder: Any = None

    def extend(self, site: str, k: Any, v: Any) -> tuple[Any, Any]:
        """All keys and values of a site, (b, g, s + t, e) each, those of this pass (b, g, t, e) among them."""
        if site in self.held:
            k, v = (xp.concatenate([old, value(new)], axis=2) for old, new in zip(self.held[site], (k, v), strict=True))
        self.held[site] = (value(k), value(v))
        return k, v


class Fixed:
    """The same in arrays that stay where they are, with room for `more` tokens, one a pass, after what `before` holds.

    `at` is where the next token goes: an array of one number on the device, so that a graph may write there. Places that are
    not written yet hold zeros and come later than the token, hence a causal model does not see them.
    """

    def __init__(self, before: Growing, more: int) -> None:
        self.memory, self.encoder, self.at = before.memory, before.encoder, xp.zeros(1, int)

        def roomy(x: Any) -> Any:
            b, g, s, e = x.shape
            room = xp.zeros((b, g, s + more, e), x.dtype)
            room[:, :, :s] = x
            return room

        self.held = {site: (roomy(k), roomy(v)) for site, (k, v) in before.held.items()}

    def extend(self, site: str, k: Any, v: Any) -> tuple[Any, Any]:
        """All room of a site, (b, g, s + more, e) each, with the keys and values of this token (b, g, 1, e) written into it."""
        for room, new in zip(self.held[site], (k, v), strict=True):
            room[:, :, self.at] = value(new)
        return self.held[site]
