"""Labelled texts in splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Snippets:
    """Texts and their labels, as indices into `classes`."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, n: int) -> Snippets:
        """The first n of them."""
        return Snippets(self.texts[:n], self.labels[:n], self.classes)


class Splits(dict[str, Snippets]):
    """{"train", "valid", "test"}, and in `notes` what one should know of how they were read, a line each."""

    notes: tuple[str, ...] = ()


def split_of(text: str) -> str:
    """The split a text belongs to, from a hash of it, so that the same words never stand in two: 80 / 10 / 10 %."""
    words = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
    bucket = hashlib.sha256(words.encode()).digest()[0] * 256 + hashlib.sha256(words.encode()).digest()[1]
    return "train" if bucket < 52429 else "valid" if bucket < 58982 else "test"


def order(text: str) -> bytes:
    """A key that sorts texts in an order of their own: a first part of them is a sample."""
    return hashlib.sha256(b"order:" + text.encode()).digest()


def grouped(rows: Sequence[tuple[str, str, str]], balance: Sequence[str] = ()) -> Splits:
    """(split, label, text) as `Splits`; in the splits of `balance` every class has as many texts as the rarest."""
    classes = tuple(sorted({label for _, label, _ in rows}))
    out = Splits()
    for split in SPLITS:
        mine = sorted(((label, text) for s, label, text in rows if s == split), key=lambda r: order(r[1]))
        if split in balance and mine:
            least = min(Counter(label for label, _ in mine).values())
            seen: Counter[str] = Counter()
            kept = []
            for label, text in mine:
                seen[label] += 1
                if seen[label] <= least:
                    kept.append((label, text))
            mine = kept
        out[split] = Snippets(tuple(t for _, t in mine), tuple(classes.index(c) for c, _ in mine), classes)
    return out
