"""`minipeft verify` and its subcommands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft import __version__
from minipeft.cli.common import Backend, terminal

judging = typer.Typer(
    name="verify",
    help="Judge implementations, anyone's, on the recorded cases.",
    no_args_is_help=False,
    invoke_without_command=True,
)


@judging.callback()
def verify(
    ctx: typer.Context,
    implementation: Annotated[
        list[str] | None,
        typer.Option(
            "-i",
            "--implementation",
            help="python:module:object, exec:'command', or a harness: peft, …; may be repeated. Default: minipeft.",
        ),
    ] = None,
    method: Annotated[Optional[list[str]], typer.Option(help="Only this method.")] = None,  # noqa: UP045
    check: Annotated[Optional[list[str]], typer.Option(help="Only this check.")] = None,  # noqa: UP045
    case: Annotated[Optional[list[str]], typer.Option(help="Only this case, or a glob over ids.")] = None,  # noqa: UP045
    level: Annotated[
        int, typer.Option(min=1, max=3, help="1: outputs; 2: and gradients and merging; 3: everything.")
    ] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 2,
    limit: Annotated[float, typer.Option(min=0.1, help="Seconds a case may take.")] = 20.0,
    python: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH: the interpreter that a harness runs under.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="By the usual readings alone, whichever are declared.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float64 or float32 (default: the best it has).")] = None,
    cases: Annotated[Path | None, typer.Option(help="A folder of cases (default: those of the package).")] = None,
    expect: Annotated[Path | None, typer.Option(help="A file of known failures.")] = None,
    update: Annotated[bool, typer.Option("--expect-update", help="Write the failures into that file.")] = False,
    json_: Annotated[Optional[Path], typer.Option("--json", help="All results, a JSON line each.")] = None,  # noqa: UP045
    junit: Annotated[Path | None, typer.Option(help="JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="One self-contained page.")] = None,
    backend: Backend = None,
) -> None:
    """Judge implementations on the recorded cases. Status 0: as expected; 1: not; 2: it could not be run; 3: the cases are damaged.

    Example: [bold]minipeft verify -i peft --method dora --html dora.html[/bold]
    """
    if ctx.invoked_subcommand is not None:
        return
    from rich.progress import Progress

    from minipeft.checkpoints.files import write_bytes
    from minipeft.conformance import cases as files
    from minipeft.conformance import report
    from minipeft.conformance import verify as job
    from minipeft.conformance.results import to_lines

    names = implementation or ["minipeft"]
    try:
        chosen = job.choose(cases or files.SHIPPED, method, check, case, level)
    except files.Damaged as why:
        print(f"minipeft: {why}", file=sys.stderr)
        raise typer.Exit(3) from None
    expected = job.read_expectations(expect) if expect is not None and (expect.exists() or not update) else []
    pythons = dict(word.partition("=")[::2] for word in python or ())
    results = []
    with Progress(console=terminal(stderr=True), transient=True) as bar:
        for name in names:
            task = bar.add_task(name, total=len(chosen.cases))
            results += job.run(
                name, chosen, jobs=jobs, limit=limit, python=pythons.get(name), dtype=dtype, strict=strict,
                progress=lambda r, task=task: bar.advance(task),  # type: ignore[misc]
            )  # fmt: skip
    by_id = {c.id: c for c in chosen.cases}
    console = terminal()
    console.print(report.matrix(results))
    unexpected = job.unexpected(results, expected)
    shown = [r for r in results if r.outcome in ("FAIL", "ERROR") and any(r.id in u for u in unexpected)]
    for r in shown[:20]:
        console.print(report.failure(r, by_id.get(r.id)))
    if len(shown) > 20:
        print(f"… and {len(shown) - 20} more")
    for path, text in (
        (json_, lambda: to_lines(results)), (junit, lambda: report.junit(results)), (markdown, lambda: report.markdown(results)),
    ):  # fmt: skip
        if path is not None:
            write_bytes(path, text().encode())
    if html is not None:
        from minipeft.conformance import page

        write_bytes(html, page.html(results, by_id, dict(version=__version__, cases=len(chosen.cases))).encode())
    if update and expect is not None:
        print(f"{expect}: {job.write_expectations(expect, results, expected)} known failures")
        return
    if unexpected:
        for line in unexpected[:40]:
            print(line)
        raise typer.Exit(1)


@judging.command("new")
def new_(
    language: Annotated[str, typer.Argument(help="rust, python, jax, mlx or c.")],
    folder: Annotated[Path, typer.Argument(help="Where to write it; must not exist or be empty.")],
) -> None:
    """Write the skeleton of a harness in another language.

    Example: [bold]minipeft verify new rust harness/[/bold]
    """
    from minipeft.conformance.new import skeleton

    for path in skeleton(language, folder):
        print(path)


@judging.command()
def field(
    folder: Annotated[Path, typer.Argument(help="Where the harnesses' environments are, or are made with pip.")],
    into: Annotated[Path, typer.Option(help="The folder that field.html and field.md are written to.")] = Path("docs"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 2,
    limit: Annotated[float, typer.Option(min=0.1, help="Seconds a case may take.")] = 20.0,
) -> None:
    """Judge every library there is a harness for, and write the matrix of the field. Status 1 if one is not as it is known to be.

    Example: [bold]minipeft verify field environments/[/bold]
    """
    from rich.progress import Progress

    from minipeft.checkpoints.files import write_bytes
    from minipeft.conformance import field as job
    from minipeft.conformance import page, report
    from minipeft.conformance.verify import choose

    chosen = choose()
    with Progress(console=terminal(stderr=True), transient=True) as bar:
        making = bar.add_task("environments", total=None)
        pythons = job.prepare(folder, lambda line: bar.update(making, description=line))
        tasks = {p: bar.add_task(p, total=len(chosen.cases)) for p in ("minipeft", *pythons)}
        results, unexpected = job.judge_all(pythons, chosen, jobs, limit, lambda p, r: bar.advance(tasks[p]))
    terminal().print(report.matrix(results))
    by_id = {c.id: c for c in chosen.cases}
    write_bytes(into / "field.html", page.html(results, by_id, dict(version=__version__, cases=len(by_id))).encode())
    write_bytes(into / "field.md", report.field(results).encode())
    for line in unexpected[:40]:
        print(line)
    if unexpected:
        raise typer.Exit(1)


@judging.command()
def diff(
    first: Annotated[str, typer.Argument(help="An implementation.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    case: Annotated[str, typer.Option(help="The id of a case.")],
    limit: Annotated[float, typer.Option(help="Seconds.")] = 20.0,
) -> None:
    """Where two implementations first differ on a case: intermediate by intermediate where they can trace, then the results.

    Example: [bold]minipeft verify diff minipeft peft --case dora.grad.usual[/bold]
    """
    from minipeft.conformance import verify as job

    rows = job.diff(first, second, job.choose(ids=[case]).cases[0], limit)
    terminal().print(job.diff_table(rows, first, second))
    if any(not row.same for row in rows):
        raise typer.Exit(1)


@judging.command()
def bisect(
    implementation: Annotated[str, typer.Argument(help="An implementation that traces.")],
    case: Annotated[str, typer.Option(help="The id of a case.")],
    limit: Annotated[float, typer.Option(help="Seconds.")] = 20.0,
) -> None:
    """The first intermediate at which an implementation departs from minipeft. Status 1 if there is one.

    Example: [bold]minipeft verify bisect peft --case dora.forward.usual[/bold]
    """
    from minipeft.conformance import verify as job

    rows, departed = job.bisect(implementation, job.choose(ids=[case]).cases[0], limit)
    terminal().print(job.diff_table(rows, "minipeft", implementation))
    if departed is not None:
        print(f"departs at {departed.name}")
        raise typer.Exit(1)
    print(f"the same in all {len(rows)} intermediates")
