"""Labelled text: the snippets that come with the package, and a user's own CSV."""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minipeft.checkpoints.files import existing
from minipeft.errors import Bad, near

FOLDER = Path(__file__).parent
BASE = FOLDER / "base"  # the small decoder that comes with the package
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


def split_of(text: str) -> str:
    """The split a text belongs to, from a hash of it, so that the same words never stand in two: 80 / 10 / 10 %."""
    words = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
    bucket = hashlib.sha256(words.encode()).digest()[0] * 256 + hashlib.sha256(words.encode()).digest()[1]
    return "train" if bucket < 52429 else "valid" if bucket < 58982 else "test"


def _order(text: str) -> bytes:
    return hashlib.sha256(b"order:" + text.encode()).digest()


def load_snippets() -> dict[str, Snippets]:
    """The snippets that come with the package, {"train", "valid", "test"}, held-out ones with as many of each class."""
    with gzip.open(FOLDER / "snippets.csv.gz", "rt", encoding="utf-8", newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["label"]]
    return _grouped([(r["split"], r["label"], r["text"]) for r in rows], balance=True)


def corpus() -> list[str]:
    """All texts of the training split, neutral ones too, for pretraining."""
    with gzip.open(FOLDER / "snippets.csv.gz", "rt", encoding="utf-8", newline="") as f:
        return [r["text"] for r in csv.DictReader(f) if r["split"] == "train"]


def held_out_text() -> list[str]:
    """All texts of the test split, neutral ones too: what a pretrained model has not seen."""
    with gzip.open(FOLDER / "snippets.csv.gz", "rt", encoding="utf-8", newline="") as f:
        return sorted((r["text"] for r in csv.DictReader(f) if r["split"] == "test"), key=_order)


def _grouped(rows: list[tuple[str, str, str]], balance: bool) -> dict[str, Snippets]:
    classes = tuple(sorted({label for _, label, _ in rows}))
    out = {}
    for split in SPLITS:
        mine = sorted(((label, text) for s, label, text in rows if s == split), key=lambda r: _order(r[1]))
        if balance and split != "train" and mine:
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


def read_csv(path: str | Path) -> dict[str, Snippets]:
    """A CSV file with the columns text and label, and perhaps split (train, valid or test; else by a hash of the text).

    Raises `Bad`, in one line, for a missing file or column, empty text, an unknown split, a single class, or a split with
    nothing in it.
    """
    path = existing(path)
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as f:
            table = csv.DictReader(f)
            columns = table.fieldnames or []
            for needed in ("text", "label"):
                if needed not in columns:
                    raise Bad(
                        f"{path}: no column {needed!r}; found {', '.join(columns) or 'none'}{near(needed, columns)}"
                    )
            rows = [(table.line_num, row) for row in table]
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, zlib.error, EOFError) as why:
        raise Bad(f"{path}: expected a CSV file in UTF-8: {why}") from None
    except OSError as why:
        raise Bad(f"{path}: cannot be read: {why.strerror}") from None
    out = []
    for i, row in rows:
        text, label, split = (row["text"] or "").strip(), (row["label"] or "").strip(), row.get("split") or ""
        if not text:
            raise Bad(f"{path}: line {i} has no text")
        if not label:
            continue  # unlabelled
        if split and split not in SPLITS:
            raise Bad(f"{path}: line {i}: split {split!r}; expected train, valid or test{near(split, SPLITS)}")
        out.append((split or split_of(text), label, text))
    found = _grouped(out, balance=False)
    if len(found["train"].classes) < 2:
        raise Bad(f"{path}: expected two labels or more, found {', '.join(found['train'].classes) or 'none'}")
    for split in ("train", "test"):
        if not len(found[split]):
            raise Bad(f"{path}: nothing in the {split} split of {len(out)} labelled rows")
    return found
