"""What a method does to a matrix or an activation, an SVG each: heat maps before, of the change and after; singular values."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minipeft.site.trained import Seen

INK = "#7f7f7f"  # to be read on white and on black
MOST = 192  # rows and columns of a heat map
SEEN = dict(
    before="#3b75af", after="#d1702c", change="#4f9a55"
)  # apart for most colour-blind eyes, and by their dashes


def svgs(seen: Seen) -> list[str]:
    """The pictures of a method as SVG elements, which a page may put beside or below one another."""
    names = ("W", "ΔW", "W′") if seen.weight else ("h", "h′ − h", "h′")
    of = dict(zip(("before", "change", "after"), (seen.before, seen.change, seen.after)))
    drawn = [partial(_heat, name=n, a=a) for n, a in zip(names, of.values()) if a is not None]
    if min(seen.before.shape) > 1:
        drawn.append(partial(_spectra, parts=of, names=names))
    return [_svg(draw, f"{seen.site} {i}") for i, draw in enumerate(drawn)]


def _svg(draw: Callable[[Any], None], salt: str) -> str:
    """One drawing; `salt` makes names in it differ from those of others on the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": INK,
        "svg.hashsalt": salt,
    }
    style |= {f"{axis}tick.color": INK for axis in "xy"} | {"axes.labelcolor": INK, "axes.titlecolor": INK}
    with mpl.rc_context(style):
        figure = Figure(figsize=(2.5, 2.6), layout="constrained")
        draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r' id="\w+_\d+"', "", out.getvalue())  # of groups, the same in every drawing
    return text[text.index("<svg") :]


def _heat(ax: Any, name: str, a: np.ndarray) -> None:
    part = a[:MOST, :MOST]
    most = float(np.abs(part).max()) or 1.0
    ax.imshow(part, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest", aspect="auto")
    ax.set_title(f"{name}   ± {most:.2g}")
    ax.set_xticks([0, part.shape[1] - 1])
    ax.set_yticks([0, part.shape[0] - 1] if len(part) > 1 else [0])


def _spectra(ax: Any, parts: dict[str, np.ndarray | None], names: tuple[str, str, str]) -> None:
    lines = dict(before="-", change=":", after="--")
    for (key, a), name in zip(parts.items(), names):
        if a is None:
            continue
        values = np.linalg.svd(a.astype(np.float64), compute_uv=False)
        values = values[values > 1e-7 * max(float(values[0]), 1e-30)] if len(values) else values
        if len(values):
            ax.semilogy(np.arange(1, len(values) + 1), values, lines[key], color=SEEN[key], label=name, linewidth=1.4)
    ax.set_title("singular values")
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)


def caption(seen: Seen) -> str:
    """What the picture shows, in a sentence, with the numbers in it."""
    W, W1, D = seen.before, seen.after, seen.change
    what = "The weight" if seen.weight else "What passes"
    if D is None:
        return f"{what} `{seen.site}` grew from {W.shape[0]} to {W1.shape[0]} rows: {W1.shape[0] - W.shape[0]} are the method's."
    if not D.any():
        return f"{what} `{seen.site}` is what it was: for this text the method does nothing there."
    share = np.linalg.norm(D) / np.linalg.norm(W)
    S = np.linalg.svd(D.astype(np.float64), compute_uv=False)
    rank = int((max(D.shape) * 2.0**-23 * S[0] < S).sum()) if min(D.shape) > 1 else 0
    of_rank = f", of rank {rank}" if rank and seen.weight else ""
    cut = " (a part of it)" if max(W.shape) > MOST else ""
    return f"{what} `{seen.site}`{cut}: the change is {share:.2g} of its norm{of_rank}."
