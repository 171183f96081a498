"""What is said of parameter-efficient fine-tuning, each claim with a measurement here that supports or refutes it.

`python -m minipeft.site.claims` measures and writes docs/claims.md. On the package's base and task, with several seeds; an interval
is for other seeds and other examples, as in `minipeft compare`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from minipeft.compare import FAMILIES, Outcome, measure, prepare
from minipeft.compare.outcomes import WHOLE
from minipeft.compare.statistics import Estimate, estimate
from minipeft.method import load_methods

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
FEW = tuple(
    FAMILIES[f] for f in ("lowrank", "scaling", "prompt")
)  # beside full fine-tuning: a weight, few numbers, virtual tokens
SEEDS = (0, 1, 2)
ROWS, STEPS = 32, 150
TEXTS = (64, 512, ROWS * STEPS)  # to train on
Found = Mapping[tuple[str, int], Sequence[Outcome]]  # by method and number of texts


def measured(tick: Callable[[str], object] = lambda what: None) -> dict[tuple[str, int], list[Outcome]]:
    """Every method on each number of texts, all seeds, as many steps each."""
    load_methods()
    out: dict[tuple[str, int], list[Outcome]] = {}
    for seed in SEEDS:
        task = prepare(steps=STEPS, rows=ROWS, seed=seed)
        for texts in TEXTS:
            fewer = dataclasses.replace(task, train=task.train[: texts // ROWS])
            for method in (WHOLE, *FEW):
                out.setdefault((method, texts), []).append(measure(fewer, method, seed=seed))
                tick(f"{method}, {texts} texts, seed {seed}")
    return out


def page(found: Found) -> str:
    """The page, in Markdown."""
    most = TEXTS[-1]
    full = found[WHOLE, most]
    blocks = [
        "# Claims",
        "What is said of such methods, and what was measured here: the package's base (1.1 million numbers) and task, 150 steps, seeds "
        f"{', '.join(map(str, SEEDS))}. `python -m minipeft.site.claims` measures again and writes this page. A base of this size says little of one of "
        "a thousand times its size; each row says what holds here. Intervals are of 95 %.",
        "| claim | measured | here |",
        "|---|---|---|",
    ]
    rows: list[tuple[str, str, bool | None]] = []
    for m in FEW:
        own = found[m, most]
        rows.append(
            (f"{m} trains a small part of the numbers", f"{own[0].share:.2f} % of the base's", own[0].share < 5)
        )
    for m in FEW:
        ratio = [_time(o) / _time(f) for o, f in zip(found[m, most], full)]
        rows.append(
            (f"a step of {m} takes less time than of full fine-tuning", f"{_span(ratio)} of its time", max(ratio) < 1)
        )
    for m in FEW:
        a, b = found[m, most][0].peak_bytes or 0, full[0].peak_bytes or 1
        rows.append((f"a step of {m} takes less memory", f"{a / b:.2f} of what full fine-tuning takes", a < b))
    for m in FEW:
        a, b = found[m, most][0].optimiser_bytes or 0, full[0].optimiser_bytes or 1
        rows.append((f"its optimiser's state is small: {m}", f"{a / b:.3f} of full fine-tuning's", a < 0.1 * b))
    for texts in reversed(TEXTS):
        for m in FEW:
            gap = _gap(found[m, texts], found[WHOLE, texts])
            rows.append((f"{m} is better than full fine-tuning on {texts} texts", f"loss {_said(gap)}", _lower(gap)))
    for m in FEW:
        lost, lost_full = (np.mean([_lost(o) for o in some]) for some in (found[m, most], full))
        rows.append(
            (
                f"{m} forgets less of the base's task than full fine-tuning",
                f"loss on plain text {lost:+.3f}, full {lost_full:+.3f}",
                bool(lost < lost_full),
            )
        )
    for m in FEW:
        same = all(o.text_off == o.text_before and o.base_unchanged for o in found[m, most])
        rows.append(
            (f"what {m} made forget comes back when it is off", "bit for bit" if same else "not bit for bit", same)
        )
    words = {True: "holds", False: "does not hold", None: "cannot be told"}
    lines = [f"| {claim} | {what} | {words[held]} |" for claim, what, held in rows]
    return "\n\n".join(blocks[:2]) + "\n\n" + "\n".join([*blocks[2:], *lines]) + "\n"


def _time(o: Outcome) -> float:
    return o.step_seconds or 0.0


def _lost(o: Outcome) -> float:
    return (o.text_on or 0.0) - (o.text_before or 0.0)


def _span(x: Sequence[float]) -> str:
    return f"{min(x):.2f} … {max(x):.2f}"


def _gap(own: Sequence[Outcome], other: Sequence[Outcome]) -> Estimate:
    """How much larger the held-out loss is."""
    return estimate(np.array([a.losses - b.losses for a, b in zip(own, other)]))


def _lower(gap: Estimate) -> bool | None:
    """Whether a difference is below 0; None where the interval holds 0."""
    return None if gap.low <= 0 <= gap.high else gap.mean < 0


def _said(gap: Estimate) -> str:
    return f"{gap.mean:+.3f} ± {gap.half:.3f}"


def main() -> None:
    """Measure, and write the page."""
    PAGE.write_text(page(measured(lambda what: print(what, file=sys.stderr, flush=True))), encoding="utf-8")


if __name__ == "__main__":
    main()
