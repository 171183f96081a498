"""The rows, plots and explanations in one self-contained HTML file, and the plots as a PNG file."""

from __future__ import annotations

import html
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minipeft.compare.findings import Findings, Row, size
from minipeft.compare.outcomes import JUDGES
from minipeft.compare.table import with_interval
from minipeft.errors import Bad
from minipeft.method import METHODS
from minipeft.plain import plain

COLUMNS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "method": ("The method; it leads to its paper.", lambda r: r.method),
    "family": ("Where it acts.", lambda r: r.family),
    "accuracy %": (
        "Held-out examples whose class is found, in percent, with a 95 % interval over other examples and, with several seeds, other seeds.",
        lambda r: with_interval(r.accuracy, 100, 1),
    ),
    "loss": ("Mean loss on held-out examples after training, in nats.", lambda r: with_interval(r.loss, 1, 3)),
    "loss − frozen": (
        "That loss less the loss of the classifier on the frozen model, on the same examples and with the same seeds; "
        "* can be told from it.",
        lambda r: with_interval(r.gain, 1, 3, "+") + ("*" if r.better is not None else ""),
    ),
    "accuracy − frozen": (
        "The same difference in points of accuracy.",
        lambda r: with_interval(r.gain_accuracy, 100, 1, "+"),
    ),
    "trained": (
        "Numbers that are trained; the classifier, which all train, is not counted.",
        lambda r: f"{r.trained:,}" if r.step_seconds is not None else "",
    ),
    "% of base": (
        "Trained numbers in percent of the base's.",
        lambda r: f"{r.share:.3g}" if r.step_seconds is not None else "",
    ),
    "rate": ("Learning rate of AdamW: the usual one of the method unless --lr is given.", lambda r: _number(r.lr, "g")),
    "ms/step": (
        "Median time of a training step on one thread, in milliseconds.",
        lambda r: "" if r.step_seconds is None else f"{1000 * r.step_seconds:.1f}",
    ),
    "peak": (
        "Most memory taken at once in a training step on the widest batch, the base's own arrays aside.",
        lambda r: _size(r.peak_bytes),
    ),
    "optimiser": ("Memory that the optimiser keeps between steps.", lambda r: _size(r.optimiser_bytes)),
    "file": ("The adapter's file, the classifier with it.", lambda r: _size(r.file_bytes)),
    "text, on": (
        "Loss on held-out plain text with the adapter on, its classifier replaced by the base's own head.",
        lambda r: _number(r.text_on, ".3f"),
    ),
    "text, off": ("The same with the adapter switched off.", lambda r: _number(r.text_off, ".3f")),
    "merge error": (
        "Largest difference between the logits of the merged and of the adapted model; – : it is no weight and does not merge.",
        lambda r: _number(r.merge_error, ".1e") or ("–" if r.step_seconds is not None else ""),
    ),
    "base": (
        "Whether every array of the base has the same bytes after training.",
        lambda r: "" if r.step_seconds is None else "same" if r.base_unchanged else "CHANGED",
    ),
}
PLOTS = {
    "Loss, less the frozen model's classifier": "Bars are 95 % intervals; left of the dashed line is better.",
    "Accuracy": "Bars are 95 % intervals; dashed: the classifier on the frozen model, dotted: always the commonest class.",
    "Accuracy against trained numbers": "Further up with fewer is better; dashed: the classifier on the frozen model.",
    "Training": "The task's loss, the mean of the seeds and of 10 steps; penalties that a method adds are left out.",
}


def _number(x: float | None, how: str) -> str:
    return "" if x is None else format(x, how)


def _size(x: float | None) -> str:
    return "" if x is None else size(x)


def plotting() -> Any:
    """matplotlib's pyplot, drawing into files. Raises `Bad` if it is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise Bad("plots need matplotlib: pip install matplotlib") from None
    return plt


def _by_family(rows: Sequence[Row]) -> list[Row]:
    """Methods with numbers, family by family, the best family and in it the best method first."""
    methods = [r for r in rows if r.loss and r.method not in JUDGES]
    best: dict[str, float] = {}
    for r in methods:
        best[r.family] = min(best.get(r.family, np.inf), r.loss.mean)  # type: ignore[union-attr]
    return sorted(methods, key=lambda r: (best[r.family], r.family, r.loss.mean))  # type: ignore[union-attr]


def _colours(rows: Sequence[Row], plt: Any) -> dict[str, Any]:
    return {f: plt.get_cmap("tab10")(i % 10) for i, f in enumerate(sorted({r.family for r in rows}))}


def _intervals(ax: Any, plt: Any, rows: Sequence[Row], what: str, factor: float) -> None:
    """A point and its interval a method, family by family."""
    methods, labels, at = _by_family(rows), [], []
    colours = _colours(methods, plt)
    y, family = 0.0, None
    for r in methods:
        e = getattr(r, what)
        if e is None:
            continue
        y += 0.0 if family in (None, r.family) else 0.6
        family = r.family
        ax.errorbar(factor * e.mean, y, xerr=factor * e.half, fmt="o", ms=5, capsize=3, color=colours[r.family])
        labels.append(f"{r.family}: {r.method}" if r.family != r.method else r.method)
        at.append(y)
        y += 1
    ax.set_yticks(at, labels)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)


def _lines(ax: Any, rows: Sequence[Row], draw: Callable) -> None:
    """The frozen model's classifier dashed, the commonest class dotted."""
    for r in rows:
        if r.method in JUDGES and r.accuracy:
            x = 100 * r.accuracy.mean
            draw(x, color="grey", ls="--" if r.method == "frozen" else ":", lw=1.2, label=f"{r.method} {x:.1f} %")
            if r.method == "frozen":
                span = ax.axvspan if draw == ax.axvline else ax.axhspan
                span(100 * r.accuracy.low, 100 * r.accuracy.high, color="grey", alpha=0.15, lw=0)


def _gain(ax: Any, plt: Any, rows: Sequence[Row]) -> None:
    _intervals(ax, plt, rows, "gain", 1)
    ax.axvline(0, color="grey", ls="--", lw=1.2, label="frozen")
    majority = next((r.gain for r in rows if r.method == "majority" and r.gain), None)
    if majority and np.isfinite(majority.mean):
        ax.axvline(majority.mean, color="grey", ls=":", lw=1.2, label=f"majority {majority.mean:+.2f}")
    ax.legend(fontsize=8, loc="best")
    ax.set(xlabel="held-out loss less frozen's, nats")


def _accuracy(ax: Any, plt: Any, rows: Sequence[Row]) -> None:
    _intervals(ax, plt, rows, "accuracy", 100)
    _lines(ax, rows, ax.axvline)
    ax.legend(fontsize=8, loc="best")
    ax.set(xlabel="held-out accuracy, %")


def _against_size(ax: Any, plt: Any, rows: Sequence[Row]) -> None:
    methods = [r for r in _by_family(rows) if r.trained]
    colours = _colours(_by_family(rows), plt)
    for r in methods:
        e = r.accuracy
        ax.errorbar(r.trained, 100 * e.mean, yerr=100 * e.half, fmt="o", ms=5, capsize=3, color=colours[r.family])  # type: ignore[union-attr]
        above = dict(fontsize=8, xytext=(0, 5), textcoords="offset points", rotation=90, ha="center", va="bottom")
        ax.annotate(r.method, (r.trained, 100 * e.high), **above)  # type: ignore[union-attr]
    _lines(ax, [r for r in rows if r.method == "frozen"], ax.axhline)
    if methods:
        ax.set(xscale="log")
        ax.legend(fontsize=8, loc="lower right")
    ax.margins(x=0.1, y=0.05)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.5 * (high - low))  # room for the names
    ax.set(xlabel="trained numbers", ylabel="held-out accuracy, %")


def _curves(ax: Any, plt: Any, rows: Sequence[Row]) -> None:
    colours, styles = _colours(_by_family(rows), plt), ("-", "--", ":", "-.")
    seen: dict[str, int] = {}
    for r in [*_by_family(rows), *(r for r in rows if r.method == "frozen")]:
        if not r.curve:
            continue
        k = min(10, len(r.curve))
        smooth = np.convolve(r.curve, np.ones(k) / k, "valid")
        style = styles[seen.setdefault(r.family, 0) % 4]
        seen[r.family] += 1
        colour, style = ("grey", "--") if r.method == "frozen" else (colours[r.family], style)
        ax.plot(np.arange(len(smooth)) + k, smooth, color=colour, ls=style, lw=1.3, label=r.method)
    ax.set(xlabel="step", ylabel="training loss, nats")
    ax.legend(fontsize=8, ncols=2)


DRAWN = (_gain, _accuracy, _against_size, _curves)


def png_plots(found: Findings) -> bytes:
    """The plots as a PNG file. Raises `Bad` without matplotlib."""
    plt = plotting()
    tall = max(5.0, 0.3 * len(found.rows))
    fig, axes = plt.subplots(2, 2, figsize=(14, 2 * tall), constrained_layout=True)
    for ax, draw, title in zip(axes.flat, DRAWN, PLOTS, strict=True):
        draw(ax, plt, found.rows)
        ax.set_title(title)
    held = io.BytesIO()
    fig.savefig(held, format="png", dpi=100)
    plt.close(fig)
    return held.getvalue()


def _svg(draw: Callable, rows: Sequence[Row], plt: Any, number: int) -> str:
    with plt.rc_context({"svg.hashsalt": f"minipeft{number}", "font.size": 10}):
        fig, ax = plt.subplots(figsize=(6, max(4.0, 0.28 * len(rows))), constrained_layout=True)
        draw(ax, plt, rows)
        held = io.StringIO()
        fig.savefig(held, format="svg", metadata={"Date": None})
        plt.close(fig)
    text = held.getvalue()[held.getvalue().index("<svg") :]
    names = set(re.findall(r'id="([^"]+)"', text))  # several drawings in one page: every id is its own
    return re.sub(r'(id="|#)([^"()]+)(?=["\)])', lambda m: f"{m[1]}p{number}-{m[2]}" if m[2] in names else m[0], text)


STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:1.5rem auto;max-width:78rem;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:1rem 0 .2rem}
li{margin:.3rem 0}
.about,figcaption,details{color:#555;font-size:.9rem}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{padding:.25rem .55rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}
td:first-child,th:first-child{position:sticky;left:0;background:#fff}
td.note{text-align:left;white-space:normal;min-width:20rem}
th{text-decoration:underline dotted #999;text-underline-offset:3px;cursor:help}
tr.frozen td,tr.majority td{background:#f3f3ef;font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,28rem),1fr));gap:1rem}
figure{margin:0}svg{width:100%;height:auto;background:#fff}
dt{font-weight:600;margin-top:.4rem}dd{margin:0}
a{color:inherit}
:root{color-scheme:light dark}
@media(prefers-color-scheme:dark){body,td:first-child,th:first-child{background:#181818;color:#ddd}
.about,figcaption,details{color:#aaa}th,td{border-color:#444}
tr.frozen td,tr.majority td{background:#2a2a2a}}
"""


def _links(rows: Sequence[Row]) -> dict[str, str]:
    """Where a method comes from, by name: the address in its file's docstring."""
    texts = {r.method: sys.modules[METHODS[r.method].__module__].__doc__ or "" for r in rows if r.method in METHODS}
    return {name: url[0].rstrip(".,") for name, text in texts.items() if (url := re.search(r"https?://\S+", text))}


def html_page(found: Findings, about: str = "") -> str:
    """One page: sentences, the table, plots, and what the columns mean. Raises `Bad` without matplotlib."""
    plt = plotting()
    links = _links(found.rows)

    def e(text: str, quote: bool = False) -> str:
        return html.escape(plain(text), quote)

    def cell(name: str, text: str, r: Row) -> str:
        url = links.get(r.method) if name == "method" else None
        return f"<td><a href={e(url, quote=True)!r}>{e(text)}</a></td>" if url else f"<td>{e(text)}</td>"

    def line(r: Row) -> str:
        if r.loss is None:
            first = cell("method", r.method, r) + f"<td>{e(r.family)}</td>"
            return f"<tr class={e(r.method)}>{first}<td class=note colspan={len(COLUMNS) - 2}>{e(r.note)}</td></tr>\n"
        return (
            f"<tr class={e(r.method)}>" + "".join(cell(c, show(r), r) for c, (_, show) in COLUMNS.items()) + "</tr>\n"
        )

    head = "".join(f"<th title='{e(why, quote=True)}'>{e(c)}</th>" for c, (why, _) in COLUMNS.items())
    figures = "".join(
        f"<figure><h2>{e(title)}</h2>{_svg(draw, found.rows, plt, i)}<figcaption>{e(caption)}</figcaption></figure>\n"
        for i, (draw, (title, caption)) in enumerate(zip(DRAWN, PLOTS.items(), strict=True))
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>minipeft compare</title><style>{STYLE}</style><h1>minipeft compare</h1>\n"
        f"<ul>{''.join(f'<li>{e(s)}</li>' for s in found.sentences)}</ul><p class=about>{e(about)}</p>\n"
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(map(line, found.rows))}</tbody></table></div>\n"
        f"<details><summary>What the columns mean</summary><dl>"
        f"{''.join(f'<dt>{e(c)}</dt><dd>{e(why)}</dd>' for c, (why, _) in COLUMNS.items())}</dl></details>\n"
        f"<div class=plots>{figures}</div></html>\n"
    )
