"""The rows in a terminal, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from minipeft.compare.findings import Row
from minipeft.compare.statistics import Estimate

WIDTH = 80
LEGEND = (
    "±: 95 % intervals over other examples and, with several seeds, other seeds. loss−frozen: held-out loss less that of the classifier on the "
    "frozen model, on the same examples; * can be told from it. trained: numbers, the classifier not counted. ms: a step. "
    "MB: most memory in a step, on the widest batch. text: what the loss on plain text rises by with the adapter on."
)


def with_interval(e: Estimate | None, factor: float, digits: int, sign: str = "") -> str:
    """80.4 ± 1.9."""
    return "" if e is None else f"{factor * e.mean:{sign}.{digits}f} ± {factor * e.half:.{digits}f}".replace("-", "−")


def cells(row: Row) -> list[str]:
    """One row of the table."""
    rise = None if row.text_on is None or row.text_before is None else row.text_on - row.text_before
    mark = "" if row.gain is None else " " if row.better is None else "*"
    return [
        row.method,
        with_interval(row.accuracy, 100, 1),
        with_interval(row.gain, 1, 3, "+") + mark,
        "" if row.step_seconds is None else f"{row.trained:,}" if row.trained < 1e7 else f"{row.trained / 1e6:,.0f}M",
        "" if row.step_seconds is None else f"{1000 * row.step_seconds:.0f}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.{1 if row.peak_bytes < 1e9 else 0}f}",
        "" if rise is None else f"{rise:+.2f}".replace("-", "−"),
    ]


HEADER = ["method", "accuracy %", "loss−frozen", "trained", "ms", "MB", "text"]


def table(rows: Sequence[Row]) -> str:
    """The rows as lines of at most 80 columns, and what the columns mean."""
    shown = [cells(r) for r in rows]
    widths = [max(map(len, column)) for column in zip(HEADER, *shown)]

    def line(words: Sequence[str]) -> str:
        first, *others = (w.ljust(n) if i == 0 else w.rjust(n) for i, (w, n) in enumerate(zip(words, widths)))
        return "  ".join([first, *others]).rstrip()

    out = [line(HEADER)]
    for row, words in zip(rows, shown):
        if row.loss is None:
            out.append(textwrap.fill(f"{row.method.ljust(widths[0])}  {row.note}", WIDTH, subsequent_indent=" " * (widths[0] + 2)))  # fmt: skip
        else:
            out.append(line(words))
    return "\n".join([*out, "", textwrap.fill(LEGEND, WIDTH)])


def line_of(row: Row) -> str:
    """What is known of a method when its last seed ends."""
    if row.accuracy is None:
        return row.note
    time = "" if row.step_seconds is None else f", {1000 * row.step_seconds:.0f} ms a step"
    return f"{with_interval(row.accuracy, 100, 1)} % right{time}"
