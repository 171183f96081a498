"""The matrix of many libraries as a picture: methods × libraries, a box with a mark for every group of checks."""

from __future__ import annotations

import io
from collections.abc import Sequence

from minipeft.conformance.groups import LETTERS
from minipeft.conformance.results import Result
from minipeft.conformance.verdicts import MARKS, grouped, implementations, states, verdict

COLOURS = {  # of boxes, told apart without red and green; what they hold tells them apart without any
    "PASS": "#bcd8f0", "READING": "#c9ece6", "PART": "#e4eff9", "FAIL": "#e07b39", "ERROR": "#b78bd0", "SKIP": "#ffffff", "N/A": "#ffffff",
}  # fmt: skip
BOX, NAME, GAP = 1.0, 9.0, 1.2  # the side of a box, the width of the methods' names, and between libraries


def png(results: Sequence[Result]) -> bytes:
    """The picture, as PNG. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names, cells = implementations(results), grouped(results)
    methods = list(dict.fromkeys(m for m, _ in cells))
    versions = {r.implementation: r.version for r in results}
    wide = len(LETTERS) * BOX + GAP
    width, height = NAME + len(names) * wide, len(methods) + 7.0
    figure = Figure(figsize=(0.15 * width, 0.19 * height), dpi=110)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for i, name in enumerate(names):
        left = NAME + i * wide
        axes.text(left, 1.0, name, fontsize=8, fontweight="bold", va="center")
        axes.text(left, 1.9, versions[name], fontsize=6.5, color="#555555", va="center")
        for k, letter in enumerate(LETTERS.values()):
            axes.text(left + k + 0.5, 2.9, letter, fontsize=6.5, color="#555555", ha="center", va="center")
    for j, method in enumerate(methods):
        top = 3.4 + j
        axes.text(0.4, top + 0.5, method, fontsize=7.5, va="center")
        for i, name in enumerate(names):
            if not verdict(cells.get((method, name), ())).there:
                continue
            for k, word in enumerate(states(cells[method, name]).values()):
                at = (NAME + i * wide + k + 0.05, top + 0.06)
                axes.add_patch(Rectangle(at, 0.9, 0.88, facecolor=COLOURS[word], edgecolor="#c8ccd0", linewidth=0.4))
                axes.text(at[0] + 0.45, top + 0.52, MARKS[word][0], fontsize=6.5, ha="center", va="center")
    told = (
        "   ".join(f"{letter} {group}" for group, letter in LETTERS.items()),
        "   ".join(f"{m} {what}" for m, what in MARKS.values()),
    )
    for j, line in enumerate(told):
        axes.text(0.4, height - 2.2 + j, line, fontsize=7.5, color="#333333", va="center")
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()
