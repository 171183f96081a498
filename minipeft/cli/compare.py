"""`minipeft compare`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from minipeft.cli.options import (
    Backend,
    Base,
    Data,
    Dtype,
    Html,
    Jobs,
    Json,
    LearningRate,
    Length,
    Methods,
    Png,
    Seed,
    Set,
    Targets,
)
from minipeft.cli.outputs import Outputs, note
from minipeft.cli.settings import chosen_settings, settings_not_for
from minipeft.cli.terminal import WIDTH, Kept, progress
from minipeft.errors import Bad


def compare(
    methods: Methods = None,
    all_: Annotated[bool, typer.Option("--all", help="Every method (default: one of each family).")] = False,
    base: Base = None,
    data: Data = None,
    length: Length = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps for each method and seed.")] = 150,
    seeds: Annotated[int, typer.Option(min=1, help="How often each method is trained: with --seed and the next.")] = 4,
    lr: LearningRate = None,
    set_: Set = None,
    targets: Targets = None,
    seed: Seed = 0,
    jobs: Jobs = None,
    html: Html = None,
    png: Png = None,
    json_: Json = None,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Adapt one base to one task with several methods and seeds, and say what follows.

    Examples:
        minipeft compare
        minipeft compare METHOD OTHER --steps 300 --html compare.html
        minipeft compare METHOD --base base/ --data reviews.csv
    """
    import dataclasses
    import textwrap
    import time

    from minipeft import compare as job
    from minipeft.compare.page import html_page, plotting, png_plots
    from minipeft.compare.table import line_of, table

    begun = time.perf_counter()
    # what cannot end well is found before anything is trained
    outputs = Outputs(html=html, png=png, json=json_)
    if html is not None or png is not None:
        plotting()
    names = _named(methods or [], all_)
    given = _settings(names, set_, targets)
    runs: dict[str, list[Any]] = {}
    with Kept[Any]() as kept, progress("comparing", seeds * (len(names) + len(job.JUDGES))) as tick:
        tick.doing("reading base and data")
        task = job.prepare(base, data, steps=steps, length=length, seed=seed, dtype=dtype)
        wanted = _made(task, names, given, seed)
        note(task.notes)
        tick.doing("")

        def ended(outcome: Any) -> None:
            kept.append(outcome)
            mine = runs.setdefault(outcome.method, [])
            mine.append(outcome)
            last = len(mine) == seeds
            tick(outcome.method, line_of(job.row_of(outcome.method, mine)) if last else "")

        job.compare(
            wanted, seeds=range(seed, seed + seeds), lr=lr, jobs=jobs, progress=ended, base=base, csv=data, steps=steps,
            length=task.length, dtype=dtype,
        )  # fmt: skip
    if not kept:
        kept.finish()
    found = job.summarise(
        {name: sorted(some, key=lambda o: o.seed) for name, some in runs.items() if some or name in names}
    )
    seconds = time.perf_counter() - begun
    about = (
        f"{base or 'The decoder of the package'} on {data or 'the snippets of the package'}, {_some(task.classes)}: "
        f"{steps} steps of {task.train[0].rows} texts of at most {task.length} tokens, {_seeds(seed, seeds)}, "
        f"judged on {len(task.labels):,} held-out texts. {seconds:.0f} seconds."
    )
    if kept.interrupted:
        about += " Interrupted: what had not ended is not here."
    sentences = "\n".join(textwrap.fill(s, WIDTH, initial_indent="- ", subsequent_indent="  ") for s in found.sentences)
    outputs.show(sentences + "\n", table(found.rows) + "\n", textwrap.fill(about, WIDTH))
    rows = [dataclasses.asdict(r) for r in found.rows]
    outputs.json(dict(about=about, findings=found.sentences, alike=found.groups, rows=rows))
    outputs.write("html", lambda: html_page(found, about))
    outputs.write("png", lambda: png_plots(found))
    kept.finish()
    if any(not r.base_unchanged for r in found.rows):
        raise Bad("a base array was changed")
    if all(r.note for r in found.rows if r.method in names):
        raise Bad(f"no method could be trained: {found.sentences[-1]}")


def _seeds(first: int, n: int) -> str:
    return f"seed {first}" if n == 1 else f"seeds {first} … {first + n - 1}"


def _some(words: Any) -> str:
    return f"{len(words)} classes ({', '.join(words[:4])}{', …' if len(words) > 4 else ''})"


def _named(methods: list[str], all_: bool) -> list[str]:
    """The methods that are asked for."""
    from minipeft import compare as job
    from minipeft.method import method_class

    if methods and all_:
        raise Bad(f"expected methods or --all, found both: {', '.join(methods)}")
    names = [method_class(name).name for name in methods] or (job.everything() if all_ else list(job.FAMILIES.values()))
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise Bad(f"method {twice[0]!r} is named twice")
    return names


def _settings(names: list[str], set_: list[str] | None, targets: str | None) -> dict[str, dict[str, Any]]:
    """What --set and --targets say of each method."""
    from minipeft.method import method_class
    from minipeft.settings import part_of

    classes = [method_class(name) for name in names]
    if not set_ and targets is None:
        return {}
    own = [cls for cls in classes if part_of(cls) is None]  # what is built over others takes its settings from them
    given = chosen_settings(own, set_, targets)
    settings_not_for(given | {cls.name: {} for cls in classes if part_of(cls)}, set_)
    if targets is not None and len(own) < len(classes):
        note([f"minipeft: --targets is not for {', '.join(c.name for c in classes if part_of(c))}"])
    return given


def _made(task: Any, names: list[str], given: dict[str, dict[str, Any]], seed: int) -> list[Any]:
    """The methods with their settings. Raises `Bad` if not one of them fits the base."""
    import dataclasses

    from minipeft import compare as job
    from minipeft.method import method_class
    from minipeft.settings import part_of, small

    made = [
        name if part_of(cls) else dataclasses.replace(small(cls, task.model.arch), **given.get(name, {}))
        for name in names
        for cls in [method_class(name)]
    ]
    why = None
    for method in made:
        try:
            if not isinstance(method, str):
                job.start(task, method, seed)
            return made
        except Bad as one:
            why = why or one
    assert why is not None
    raise why
