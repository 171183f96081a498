"""Labelled text: the snippets that come with the package, and a user's own CSV."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from minipeft.data.splits import SPLITS, Snippets, Splits, grouped, order, split_of
from minipeft.data.table import read_csv

FOLDER = Path(__file__).parent
BASE = FOLDER / "base"  # the small decoder that comes with the package


def _rows() -> list[dict[str, str]]:
    with gzip.open(FOLDER / "snippets.csv.gz", "rt", encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def load_snippets(label: str = "source") -> Splits:
    """The snippets that come with the package, with as many of each class in every split.

    `label` is the column of the classes: "source" (editorials, movies, products, tweets), or "label" (negative, positive).
    """
    return grouped([(r["split"], r[label], r["text"]) for r in _rows() if r[label]], balance=SPLITS)


def corpus() -> list[str]:
    """All texts of the training split, neutral ones too, for pretraining."""
    return [r["text"] for r in _rows() if r["split"] == "train"]


def held_out_text() -> list[str]:
    """All texts of the test split, neutral ones too: what a pretrained model has not seen."""
    return sorted((r["text"] for r in _rows() if r["split"] == "test"), key=order)


__all__ = [
    "BASE",
    "FOLDER",
    "SPLITS",
    "Snippets",
    "Splits",
    "corpus",
    "held_out_text",
    "load_snippets",
    "read_csv",
    "split_of",
]
