"""From outcomes to rows, one a method over all seeds, and to the sentences that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from minipeft.compare.outcomes import JUDGES, Outcome, family_of
from minipeft.compare.statistics import Estimate, alike, estimate, holm


@dataclass
class Row:
    """What one method gave over its seeds; `None` where there is nothing to say, and `note` why something is missing."""

    method: str
    family: str = ""
    seeds: tuple[int, ...] = ()
    accuracy: Estimate | None = None  # of 1
    loss: Estimate | None = None  # on held-out examples, after training
    gain: Estimate | None = None  # that loss less the frozen classifier's, on the same examples with the same seeds
    gain_accuracy: Estimate | None = None
    better: bool | None = None  # than the frozen classifier: True or False if they can be told apart, else None
    trained: int = 0  # numbers, the classifier not counted
    share: float = 0.0  # of the base's, in percent
    lr: float | None = None
    step_seconds: float | None = None
    peak_bytes: int | None = None
    optimiser_bytes: int | None = None
    file_bytes: int | None = None
    text_before: float | None = None
    text_on: float | None = None
    text_off: float | None = None
    text_returns: bool | None = None  # with the adapter off it is bit for bit what it was
    merge_error: float | None = None
    base_unchanged: bool = True
    curve: list[float] = field(default_factory=list)  # mean over seeds
    note: str = ""


@dataclass
class Findings:
    """Rows, best loss first; the groups that cannot be told apart; and sentences that say so."""

    rows: list[Row]
    groups: list[list[str]]
    sentences: list[str]


def summarise(outcomes: Mapping[str, Sequence[Outcome]]) -> Findings:
    """Rows, groups and sentences from what `compare` returns."""
    good = {name: {o.seed: o for o in some if not o.note} for name, some in outcomes.items()}
    frozen = good.get("frozen", {})
    rows = {name: row_of(name, some, frozen) for name, some in outcomes.items()}
    judged = [name for name, some in good.items() if some and name != "majority"]
    judged.sort(key=lambda name: rows[name].loss.mean)  # type: ignore[union-attr]
    p = {}
    for a, b in combinations(judged, 2):
        seeds = sorted(good[a].keys() & good[b].keys())
        if seeds:
            p[a, b] = estimate(_stack(good[a], seeds, "losses") - _stack(good[b], seeds, "losses")).p
    different = holm(p)
    for name in judged:
        if name != "frozen" and {(name, "frozen"), ("frozen", name)} & different:
            rows[name].better = rows[name].gain.mean < 0  # type: ignore[union-attr]
    methods = [name for name in judged if name not in JUDGES]
    groups = [g for g in alike(methods, different) if len(g) > 1]
    ordered = sorted(rows.values(), key=lambda r: (r.loss is None, r.loss.mean if r.loss else 0.0, r.method))
    return Findings(ordered, groups, _sentences(ordered, groups))


def _stack(by_seed: Mapping[int, Outcome], seeds: Sequence[int], what: str) -> np.ndarray:
    return np.stack([np.asarray(getattr(by_seed[s], what), np.float64) for s in seeds])


def row_of(name: str, outcomes: Sequence[Outcome], frozen: Mapping[int, Outcome] | None = None) -> Row:
    """The row of one method; `frozen` are the frozen classifier's outcomes by seed."""
    frozen = frozen or {}
    good = {o.seed: o for o in outcomes if not o.note}
    row = Row(name, family_of(name), tuple(good))
    failed = [o for o in outcomes if o.note]
    if failed:
        which = f"with seed {', '.join(str(o.seed) for o in failed)}: " if good else ""
        row.note = which + failed[0].note
    if not good:
        return row
    some = list(good.values())
    row.loss, row.accuracy = (estimate(_stack(good, row.seeds, what)) for what in ("losses", "right"))
    both = [s for s in row.seeds if s in frozen]
    if both and name != "frozen":
        row.gain, row.gain_accuracy = (
            estimate(_stack(good, both, what) - _stack(frozen, both, what)) for what in ("losses", "right")
        )

    def mean(what: str) -> Any:
        found = [x for o in some if (x := getattr(o, what)) is not None]
        return float(np.mean(found)) if found else None

    first = some[0]
    row.trained, row.share, row.lr = first.trained, first.share, first.lr
    row.optimiser_bytes, row.file_bytes = first.optimiser_bytes, first.file_bytes
    row.peak_bytes = next((o.peak_bytes for o in some if o.peak_bytes is not None), None)
    times = [o.step_seconds for o in some if o.step_seconds is not None]
    row.step_seconds = float(np.median(times)) if times else None
    row.text_before, row.text_on, row.text_off = mean("text_before"), mean("text_on"), mean("text_off")
    if row.text_off is not None:
        row.text_returns = all(o.text_off == o.text_before for o in some)
    errors = [o.merge_error for o in some if o.merge_error is not None]
    row.merge_error = max(errors) if errors else None
    row.base_unchanged = all(o.base_unchanged for o in some)
    row.curve = [float(x) for x in np.mean([o.curve for o in some], axis=0)] if first.curve else []
    return row


# --- sentences --------------------------------------------------------------------------------------------------------


def points(e: Estimate) -> str:
    """+9.1 ± 1.6, of percent."""
    return f"{100 * e.mean:+.1f} ± {100 * e.half:.1f}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def size(n: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def _sentences(rows: Sequence[Row], groups: Sequence[Sequence[str]]) -> list[str]:
    by_name = {r.method: r for r in rows}
    methods = [r for r in rows if r.method not in JUDGES and r.loss]
    return [
        s
        for s in (
            *_against_frozen(methods, by_name.get("frozen")),
            _told_apart(methods, groups),
            _one_seed(rows),
            _cost(methods, by_name.get("frozen")),
            _text(methods),
            *(f"{r.method} failed{'' if not r.loss else ' in part'}: {r.note}." for r in rows if r.note),
        )
        if s
    ]


def _against_frozen(methods: Sequence[Row], frozen: Row | None) -> list[str]:
    if frozen is None or frozen.accuracy is None:
        return ["The classifier on the frozen model has no numbers, so nothing is held against it."]
    level = f"a classifier on the frozen model ({100 * frozen.accuracy.mean:.1f} ± {100 * frozen.accuracy.half:.1f} % right)"
    out = []
    for better, verb in ((True, "Better than"), (False, "Worse than")):
        some = [r for r in methods if r.better is better and r.gain_accuracy]
        if some:
            every = "all of them, " if len(some) == len(methods) > 1 else ""
            shown = [f"{r.method} {points(r.gain_accuracy)}" for r in some if r.gain_accuracy]
            out.append(f"{verb} {level} by held-out loss; in points of accuracy: {every}{listed(shown)}.")
            level = "it"
    unclear = [r.method for r in methods if r.better is None]
    if unclear:
        out.append(f"Not to be told from {level}: {listed(unclear)}.")
    return out


def _told_apart(methods: Sequence[Row], groups: Sequence[Sequence[str]]) -> str:
    if len(methods) < 2:
        return ""
    if not groups:
        return "Every two of them can be told apart by their loss: the table's order is one."
    shown = "; ".join(listed(g) for g in groups)
    rest = "" if any(len(g) == len(methods) for g in groups) else " Every other two can."
    return f"Not to be told from one another: {shown}.{rest}"


def _one_seed(rows: Sequence[Row]) -> str:
    """What has no interval over seeds."""
    some = [r for r in rows if r.loss]
    alone = [r.method for r in some if len(r.seeds) == 1]
    if not alone:
        return ""
    who = "There was one seed" if len(alone) == len(some) else f"There was one seed of {listed(alone)}"
    return f"{who}: such intervals are over other examples alone, and another seed may say otherwise."


def _range(rows: Sequence[Row], what: str, show: Any) -> str:
    """least (who) to most (who)."""
    found = sorted((x, r.method) for r in rows if (x := getattr(r, what)) is not None)
    if not found:
        return ""
    (low, first), (high, last) = found[0], found[-1]
    if show(low) == show(high):
        return show(low)
    return f"{show(low)} ({first}) to {show(high)} ({last})"


def _cost(methods: Sequence[Row], frozen: Row | None) -> str:
    if not methods:
        return ""
    ms = lambda s: f"{1000 * s:.0f} ms"
    alone = [f"{show(x)}" for what, show in (("step_seconds", ms), ("peak_bytes", size)) if frozen and (x := getattr(frozen, what)) is not None]  # fmt: skip
    shares = _range(methods, "share", lambda x: f"{x:.2g} %" if x < 99.95 else "100 %")
    against = f"; the classifier alone {listed(alone)}" if alone else ""
    return (
        f"They train {shares} of the base's numbers; a step takes {_range(methods, 'step_seconds', ms)} and at most "
        f"{_range(methods, 'peak_bytes', size)}{against}."
    )


def _text(methods: Sequence[Row]) -> str:
    some = [r for r in methods if r.text_on is not None]
    if not some:
        return ""
    nats = lambda x: f"{x:.2f}"
    said = f"The base's loss on plain text, {nats(some[0].text_before)}, is {_range(some, 'text_on', nats)} with an adapter on"
    same, other = [r for r in some if r.text_returns], [r for r in some if not r.text_returns]
    if same:
        said += f"; switched off it is what it was, bit for bit, with {'every method' if not other else listed([r.method for r in same])}"
    if other:
        said += "; switched off it is " + listed([f"{r.text_off:.4f} with {r.method}" for r in other])
    return said + "."
