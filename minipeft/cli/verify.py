"""`minipeft verify`; its subcommands are in files of their own."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from minipeft import __version__
from minipeft.cli.options import (
    Backend,
    Html,
    Jobs,
    Json,
    Junit,
    Limit,
    Markdown,
    Strict,
    known,
    method_names,
    named,
    one_of,
)
from minipeft.cli.outputs import Outputs
from minipeft.cli.terminal import Kept, plain, progress, terminal
from minipeft.errors import Bad
from minipeft.processes import cores

DTYPES = ("float64", "float32")
CHECKS = ("forward", "grad", "delta", "merge")


class _Judging(TyperGroup):
    """Methods are positions, as in every command; a first word that names a subcommand is one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["subcommand"] = bool(args) and args[0] in self.commands
        ctx.allow_interspersed_args = not ctx.meta["subcommand"]
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        every = super().get_params(ctx)
        return [p for p in every if p.param_type_name == "option"] if ctx.meta.get("subcommand") else every


judging = typer.Typer(
    name="verify",
    cls=_Judging,
    no_args_is_help=False,
    invoke_without_command=True,
    subcommand_metavar="| COMMAND [ARGS]...",
)


def _methods_and_commands(incomplete: str) -> list[str]:
    commands = [c.name or c.callback.__name__.rstrip("_") for c in judging.registered_commands if c.callback]
    return [*method_names(incomplete), *(c for c in commands if c.startswith(incomplete))]


def implementations(incomplete: str) -> list[str]:
    """Implementations that begin so."""
    from minipeft.conformance.program import PEERS

    return one_of("minipeft", *PEERS, "python:", "exec:")(incomplete)


def _cases(incomplete: str) -> list[str]:
    from minipeft.conformance import cases as files

    return [c.id for c in files.load(files.SHIPPED) if c.id.startswith(incomplete)]


def _required(incomplete: str) -> list[str]:
    from minipeft.conformance.groups import GROUP_OF, GROUPS

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + word for word in one_of(*dict.fromkeys([*GROUP_OF, *GROUPS]))(last)]


Python = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="The interpreter that a harness runs under, PATH or NAME=PATH; minipeft need not be installed there."
    ),
]
Case = Annotated[str, typer.Option("--case", help="The id of a case.", autocompletion=_cases)]


@judging.callback()
def verify(
    ctx: typer.Context,
    methods: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Only these methods (default: all).", autocompletion=_methods_and_commands, callback=named),
    ] = None,
    implementation: Annotated[
        list[str] | None,
        typer.Option(
            "-i",
            "--implementation",
            help="python:module:object, exec:'command', or a harness: peft, …; may be repeated. Default: minipeft.",
            autocompletion=implementations,
        ),
    ] = None,
    check: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this check.", autocompletion=one_of(*CHECKS)),
    ] = None,
    case: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this case, or a glob over ids.", autocompletion=_cases),
    ] = None,
    level: Annotated[
        int, typer.Option(min=1, max=3, help="1: outputs; 2: and gradients and merging; 3: everything.")
    ] = 3,
    jobs: Jobs = None,
    limit: Limit = 20.0,
    python: Python = None,
    strict: Strict = False,
    dtype: Annotated[
        str | None, typer.Option(help="float64 or float32 (default: the best it has).", autocompletion=one_of(*DTYPES))
    ] = None,
    cases: Annotated[Path | None, typer.Option(help="A folder of cases (default: those of the package).")] = None,
    expect: Annotated[
        Path | None,
        typer.Option(help="A file of known failures (default, of a harness: what is known of its library)."),
    ] = None,
    require: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKS",
            help="Checks or groups that every method must have answered: forward,grad,files. A name of both is the check's.",
            autocompletion=_required,
        ),
    ] = None,
    update: Annotated[bool, typer.Option("--expect-update", help="Write the failures into that file.")] = False,
    json_: Json = None,
    junit: Junit = None,
    markdown: Markdown = None,
    html: Html = None,
    backend: Backend = None,
) -> None:
    """Judge implementations, anyone's, on the recorded cases.

    A verdict says what was not answered: PASS 13 of 37 (24 not answered: load, train, unmerge).

    Status 0: as expected; 1: not (a failure that is not known, a pass of one that is, what --require names not answered, nothing
    judged); 2: it could not be run; 3: the cases are damaged.

    Examples:
        minipeft verify METHOD
        minipeft verify -i peft METHOD --html report.html
        minipeft verify METHOD --require forward,grad,merge
        minipeft verify --case 'METHOD.forward.*' --json -
    """
    if ctx.invoked_subcommand is not None:
        return
    from minipeft.conformance import cases as files
    from minipeft.conformance import expect as known_failures
    from minipeft.conformance import findings, report, verdicts
    from minipeft.conformance import verify as job
    from minipeft.conformance.program import NotStarted, command_of, interpreters
    from minipeft.conformance.results import Result, to_lines
    from minipeft.processes import orphans_ended

    outputs = Outputs(json=json_, junit=junit, markdown=markdown, html=html)
    if dtype is not None:
        known("--dtype", dtype, DTYPES)
    if update and expect is None:
        raise Bad("--expect-update: expected --expect FILE beside it")
    names = list(dict.fromkeys(implementation or ["minipeft"]))
    pythons = interpreters(python or (), names)
    for name in names:
        command_of(name, pythons.get(name))
    try:
        chosen = job.choose(cases or files.SHIPPED, methods, check, case, level)
    except files.Damaged as why:
        print(f"minipeft: {plain(why)}", file=sys.stderr)
        raise typer.Exit(3) from None
    wanted = verdicts.required(require, (c.check for c in chosen.cases)) if require is not None else {}
    given = known_failures.read_expectations(expect) if expect is not None and (expect.exists() or not update) else []
    expected = {
        n: given if expect is not None else known_failures.concerning(known_failures.of_harness(n), chosen.cases)
        for n in names
    }
    console, results, not_started = ready(), Kept[Result](), dict[str, NotStarted]()
    judged, gave = dict[str, list[Result]](), dict[str, Any]()
    with results, orphans_ended(), progress("judging", len(names) * len(chosen.cases)) as tick:
        for name in names:
            tick.doing(f"{name} starts")
            gave.clear()
            try:
                judged[name] = job.run(
                    name, chosen, jobs=jobs or cores(), limit=limit, python=pythons.get(name), dtype=dtype, strict=strict,
                    progress=by_method(name, chosen.cases, results, tick), gave=gave,
                )  # fmt: skip
            except NotStarted as why:
                not_started[name] = why
                results.extend(job.unstarted(name, chosen, why))
    for name in (
        {r.implementation for r in results} - judged.keys() - not_started.keys()
    ):  # the one that was interrupted
        judged[name] = job.diagnosed((r for r in results if r.implementation == name), gave)
    for name in not_started:
        judged[name] = [r for r in results if r.implementation == name]
    done = job.in_order(names, chosen, (r for some in judged.values() for r in some))
    by_id = {c.id: c for c in chosen.cases}
    mine = {n: [r for r in done if r.implementation == n] for n in names}
    if expect is not None:
        surprises = known_failures.surprises(done, given)
    else:
        surprises = [line for n in names for line in known_failures.surprises(mine[n], expected[n])]
    told = [r for n in names for r in known_failures.explained(mine[n], expected[n])]
    missing = verdicts.lacking(told, wanted, methods or ()) if wanted else {}
    lacks = [line for lines in missing.values() for line in lines]
    outputs.show(report.matrix(told, console.width))
    if chosen.recorded > len(chosen.cases):
        outputs.show(f"asked: {len(chosen.cases)} of the {chosen.recorded} cases of these methods")
    wrong = [r for r in told if r.outcome in findings.WRONG and r.implementation not in not_started]
    known_ones = [r for r in wrong if r.expected_outcome]
    found = findings.findings(wrong)
    shown = [f for f in found if not f.known or expect is None]
    outputs.show(*(report.panel(f, by_id.get(f.first.id)) for f in shown[:20]))
    if len(shown) > 20:
        outputs.show(f"… and {len(shown) - 20} more findings")

    def page() -> str:
        from minipeft.conformance import page

        return page.html(told, by_id, dict(version=__version__, cases=len(chosen.cases)), lacks)

    outputs.write("json", lambda: to_lines(told))
    outputs.write("junit", lambda: report.junit(told, missing))
    outputs.write("markdown", lambda: report.markdown(told, lacks))
    outputs.write("html", page)
    if results.interrupted:
        outputs.show(f"interrupted: {len(results)} of {len(names) * len(chosen.cases)} cases were judged")
    results.finish()
    if not_started:
        for each in not_started.values():
            print(f"minipeft: {plain(each)}", file=sys.stderr)
        raise typer.Exit(2)
    new = [report.line(f) for f in found if not f.known] + surprises
    if update and expect is not None:
        outputs.show(f"{expect}: {known_failures.write_expectations(expect, done, given)} known failures")
        new = []
    elif known_ones:
        outputs.show(f"{len(known_ones)} of {len(wrong)} failures are known: {expect or 'docs/deviations.md'}")
    new += lacks + [f"{n}: nothing was judged" for n in names if verdicts.verdict(mine[n]).word == "SKIP"]
    if new:
        outputs.show(*new[:40])
        raise typer.Exit(1)


def ready() -> Any:
    """The terminal, and what shows results there imported: after Ctrl-C there is no time for that."""
    import rich.panel
    import rich.table
    import rich.text  # noqa: F401

    return terminal()


def by_method(name: str, cases: Sequence[Any], results: list[Any], tick: Any) -> Callable[[Any], None]:
    """Keeps results, and says each method's as its last one comes."""
    from minipeft.conformance.verdicts import verdict

    left = Counter(c.method for c in cases)
    got: dict[str, list[Any]] = {method: [] for method in left}

    def judged(r: Any) -> None:
        results.append(r)
        got[r.method].append(r)
        last = len(got[r.method]) == left[r.method] and verdict(got[r.method])
        tick(f"{name} {r.method}", last.brief if last and last.there else "")

    return judged
