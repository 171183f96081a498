"""`minipeft compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from minipeft.cli.common import Backend, Dtype, settings
from minipeft.errors import Bad


def compare(
    methods: Annotated[Optional[list[str]], typer.Argument(help="Methods (default: one of each family).")] = None,  # noqa: UP045
    all_: Annotated[bool, typer.Option("--all", help="Every method.")] = False,
    base: Annotated[
        Path | None, typer.Option(help="A checkpoint folder (default: the decoder of the package).")
    ] = None,
    data: Annotated[Optional[Path], typer.Option(help="A CSV file with columns text, label and perhaps split.")] = None,  # noqa: UP045
    length: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Tokens that a text may have (default: as many as 95 % of yours have; 24 of the package's)."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps for each method and seed.")] = 150,
    seeds: Annotated[int, typer.Option(min=1, help="How many times each method is trained.")] = 4,
    seed: Annotated[int, typer.Option(help="The first seed. Same seeds, same numbers.")] = 0,
    lr: Annotated[
        float | None, typer.Option(help="One learning rate for all (default: each method's usual one).")
    ] = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="A setting of all the methods, r=4, or of one, lora.r=4."),
    ] = None,
    targets: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Where all the methods attach, q_proj or all-linear; may be repeated."),
    ] = None,
    jobs: Annotated[Optional[int], typer.Option(min=1, help="Processes (default: one for each core).")] = None,  # noqa: UP045
    html: Annotated[Optional[Path], typer.Option(help="Write one self-contained page.")] = None,  # noqa: UP045
    png: Annotated[Optional[Path], typer.Option(help="Write the plots.")] = None,  # noqa: UP045
    json_: Annotated[Path | None, typer.Option("--json", help="Write all numbers ('-': to standard output).")] = None,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Adapt one base to one task with several methods and seeds, and say what can be concluded.

    Examples: [bold]minipeft compare[/bold]   [dim]minipeft compare lora dora --steps 300 --html out.html[/dim]
    [dim]minipeft compare lora --base path/to/checkpoint --data reviews.csv[/dim]
    """
    import textwrap
    import time

    from minipeft import compare as job
    from minipeft.compare.page import plotting, write_html, write_png
    from minipeft.compare.table import WIDTH, table

    begun = time.perf_counter()
    names = _named(methods or [], all_)
    # before anything is trained, what cannot end well is found
    rate(lr)
    for path in (html, png, json_):
        if path is not None and str(path) != "-" and not path.absolute().parent.is_dir():
            raise Bad(f"{path}: no such folder {path.absolute().parent}")
    if html is not None or png is not None:
        plotting()
    places = [word for given in targets or () for word in given.split()] or None
    task = job.prepare(base, data, steps=steps, length=length, seed=seed, dtype=dtype)
    wanted = _made(task, names, set_ or [], places, seed)
    _say(*task.notes)

    chosen = list(range(seed, seed + seeds))
    outcomes: dict[str, list[Any]] = {}
    ended = False
    with _watching(len(wanted) + len(job.JUDGES), seeds) as watch:

        def progress(outcome: Any) -> None:
            outcomes.setdefault(outcome.method, []).append(outcome)
            watch(outcomes[outcome.method], outcomes.get("frozen", []))

        try:
            job.compare(
                wanted, seeds=chosen, lr=lr, targets=places, jobs=jobs, progress=progress, base=base, csv=data, steps=steps,
                length=task.length, dtype=dtype,
            )  # fmt: skip
        except KeyboardInterrupt:
            ended = True
    found = job.summarise({k: sorted(v, key=lambda o: o.seed) for k, v in outcomes.items()})
    seconds = time.perf_counter() - begun
    about = (
        f"{base or 'The decoder of the package'} on {data or 'the snippets of the package'}, {len(task.classes)} classes "
        f"({', '.join(task.classes[:4])}{', …' if len(task.classes) > 4 else ''}): {steps} steps of {task.train[0].rows} examples of at "
        f"most {task.length} tokens, seeds {', '.join(map(str, chosen))}, judged on {len(task.labels):,} held-out examples. {seconds:.0f} seconds."
    )
    if ended:
        about += " Interrupted: what was not finished is not here."
    if json_ is None or str(json_) != "-":
        print("\n".join(textwrap.fill(s, WIDTH, initial_indent="- ", subsequent_indent="  ") for s in found.sentences))
        print(f"\n{table(found.rows)}\n\n{textwrap.fill(about, WIDTH)}")
    if json_ is not None:
        _write_json(json_, found, about)
    if html is not None:
        write_html(found, html, about)
    if png is not None:
        write_png(found, png)
    if ended:
        raise KeyboardInterrupt
    if any(not r.base_unchanged for r in found.rows):
        raise Bad("a base array was changed")


def rate(lr: float | None) -> None:
    """Refuse a learning rate that is none; 0 is one."""
    import math

    if lr is not None and not (math.isfinite(lr) and lr >= 0):
        raise Bad(f"--lr {lr}: expected a number of 0 or more")


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


def _made(task: Any, names: list[str], given: list[str], targets: list[str] | None, seed: int) -> list[Any]:
    """The methods with their settings, some of which fits the base."""
    import dataclasses

    from minipeft import compare as job
    from minipeft.errors import near
    from minipeft.method import method_class

    classes = {name: method_class(name) for name in names}
    words: dict[str, list[str]] = {name: [] for name in names}
    for word in given:
        key, eq, value = word.partition("=")
        method, dot, field = key.rpartition(".")
        if dot and method not in classes:
            raise Bad(f"--set {word}: {method!r} is not compared{near(method, names)}; compared: {', '.join(names)}")
        own = [method] if dot else names
        without = [n for n in own if eq and field not in {f.name for f in dataclasses.fields(classes[n])}]
        if without and len(without) < len(own):
            have = next(n for n in own if n not in without)
            raise Bad(f"--set {word}: {', '.join(without)} has no {field!r}; --set {have}.{word} sets that of {have} alone")
        for name in own:
            if classes[name].parts:
                raise Bad(f"--set {word}: {name} is built over {classes[name].parts} and takes its settings from it")
            words[name].append(f"{field}{eq}{value}")
    made = [settings(classes[n], task.model.arch, words[n]) if words[n] else n for n in names]
    why = []
    for name, method in zip(names, made):
        if classes[name].parts:
            return made
        try:
            job.start(task, method if method is not name else classes[name].sized(task.model.arch), seed, targets=targets)
            return made
        except Bad as one:
            why.append(one)
    raise why[0]


def _say(*lines: str) -> None:
    import sys

    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _watching(methods: int, seeds: int) -> Any:
    """A bar in a terminal; elsewhere a line as each method ends. Used as a context it gives what is called as each run ends."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from minipeft.compare.findings import row_of
    from minipeft.compare.table import line_of

    console = Console(stderr=True)

    @contextmanager
    def watching() -> Any:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            line = bar.add_task("comparing", total=methods * seeds)

            def watch(outcomes: list[Any], frozen: list[Any]) -> None:
                name = outcomes[0].method
                bar.update(line, advance=1, description=f"comparing, {name} {len(outcomes)} of {seeds}")
                if len(outcomes) == seeds and not console.is_terminal:
                    _say(line_of(row_of(name, outcomes, {o.seed: o for o in frozen if not o.note})))

            yield watch

    return watching()


def _write_json(path: Path, found: Any, about: str) -> None:
    import dataclasses
    import json

    from minipeft.checkpoints.files import write_json

    numbers = dict(
        about=about, findings=found.sentences, alike=found.groups, rows=[dataclasses.asdict(r) for r in found.rows]
    )
    if str(path) == "-":
        print(json.dumps(numbers, indent=2))
    else:
        write_json(path, numbers)
