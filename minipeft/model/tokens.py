"""The bookkeeping of a sequence axis, and which keys a query sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minipeft.engine import ops
from minipeft.engine.backend import lowest, read_only, xp
from minipeft.model.batch import IGNORE
from minipeft.shown import described


@dataclass
class Tokens:
    """The bookkeeping of one sequence axis, which methods that insert virtual tokens change."""

    t: int  # tokens in this pass
    mask: Any = None  # (b, past + t) bool, None: all visible
    positions: Any = None  # (b, t) given by the caller, None: counted
    moved: int = 0  # how far virtual tokens have moved those, at most
    highest: int = 0  # the largest position of a virtual token
    types: Any = None  # (b, t)
    labels: Any = None  # (b, t) if labels are per token
    weights: Any = None  # (b, t), what each of these counts in the loss; None: 1
    virtual: int = 0  # inserted so far
    past: int = 0  # tokens already in the cache
    at: Any = None  # (t,) where those of this pass stand among the keys, None: at the end
    offset: int = 0  # position of the first token
    ends: Any = None  # (b,) each row's last token that is no padding by its id, not counting virtual ones
    pool: int | None = None  # the position a classifier must read, if a method insists on one
    windowed: tuple[bool, ...] = ()  # of each prefix key of the block at work: does a sliding window move past it?
    shared: dict = field(default_factory=dict)  # attention biases of this pass, built once

    __repr__ = described

    def insert(self, h: Any, P: Any, at: int = 0, labels: Any = None, weights: Any = None) -> Any:
        """h (b, t, d) with the virtual tokens P (p, d) or (b, p, d) inserted before index `at`: (b, t + p, d).

        They are visible to all, have token type 0 and label −100, and take the positions from `at` on; what follows
        moves up by p. Or they have `labels` (p,), which count with `weights` (p,) in the loss.
        """
        b, p = h.shape[0], P.shape[-2]
        if P.ndim == 2:
            P = ops.broadcast_to(P, shape=(b, *P.shape))
        parts = [x for x in (h[:, :at], P, h[:, at:]) if x.shape[1]]

        def spread(x: Any, fill: Any) -> Any:
            new = xp.full((x.shape[0], p), fill, x.dtype)
            return xp.concatenate([x[:, :at], new, x[:, at:]], axis=1)

        if self.mask is not None:
            self.mask = spread(self.mask, True)
        if self.types is not None:
            self.types = spread(self.types, 0)
        if weights is not None and self.weights is None:
            self.weights = xp.ones((b, self.t), h.dtype)
        if self.weights is not None:
            self.weights = spread(self.weights, 1 if weights is None else weights)
        if self.labels is not None:
            self.labels = spread(self.labels, IGNORE if labels is None else labels)
        if self.positions is not None:
            new = xp.broadcast_to(xp.arange(at, at + p, dtype=self.positions.dtype), (b, p))
            moved = xp.concatenate([self.positions[:, :at], self.positions[:, at:] + p], axis=1)
            more = p * (at < self.positions.shape[1])
            self.moved, self.highest = self.moved + more, max(self.highest + more, at + p - 1)
            self.positions = xp.concatenate([moved[:, :at], new, moved[:, at:]], axis=1)
        self.t += p
        self.virtual += p
        self.shared.clear()
        return ops.concatenate(*parts, axis=1)

    def position_ids(self) -> Any:
        """(1, t) or (b, t): the position of every token of this pass."""
        if self.positions is not None:
            return self.positions + self.offset
        return xp.arange(self.past + self.offset, self.past + self.offset + self.t)[None]

    def places(self, keys: int) -> Any:
        """(t,): where the tokens of this pass stand among the keys."""
        return xp.arange(keys - self.t, keys) if self.at is None else self.at

    @property
    def first(self) -> Any:
        """(b,) or 0: index of each row's first visible token."""
        return 0 if self.mask is None else self.mask.argmax(axis=1)

    @property
    def last(self) -> Any:
        """(b,) or t − 1: index of each row's last visible token."""
        n = self.t + self.past
        return n - 1 if self.mask is None else n - 1 - self.mask[:, ::-1].argmax(axis=1)


def visibility(tokens: Tokens, keys: int, extra: int, causal: bool, window: int | None, dtype: Any) -> Any:
    """What is added to the scores: 0 where a query may see a key, a huge negative number elsewhere; None if all may.

    `keys` text keys follow `extra` prefix keys, which everybody sees, or a window as `tokens.windowed` says. Shape
    (b or 1, 1, t or 1, extra + keys). A query that may see none (padding on the left, a window over padding, an empty
    memory) attends to all alike, as in transformers: see `ops.attention`.
    """
    causal = causal and (tokens.t > 1 or tokens.at is not None)
    slides = tokens.windowed if window and any(tokens.windowed) else ()
    at = ("mask", keys, extra, causal, window, slides)
    if at not in tokens.shared:
        allowed = None
        if causal or window:
            query, key = tokens.places(keys)[:, None], xp.arange(keys)[None, :]
            allowed = (key <= query)[None, None]
            if window:
                allowed = allowed & (query - key < window)
        if tokens.mask is not None:
            seen = tokens.mask[:, None, None, :]
            allowed = seen if allowed is None else allowed & seen
        if allowed is not None:
            if extra:
                before = xp.ones((*allowed.shape[:-1], extra), bool)
                if window and slides:
                    distance = tokens.places(keys)[:, None] - xp.arange(-extra, 0)[None, :]
                    before = (
                        before
                        & ((distance < window) | ~xp.asarray((False,) * (extra - len(slides)) + slides))[None, None]
                    )
                allowed = xp.concatenate([before, allowed], axis=-1)
            hidden = xp.full((), lowest(dtype) / 2, dtype)
            allowed = read_only(xp.where(allowed, xp.zeros((), dtype), hidden))
        tokens.shared[at] = allowed
    return tokens.shared[at]
