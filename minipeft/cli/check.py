"""`minipeft check`."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from minipeft.cli.options import Backend, Json, Methods, Set, Targets, known, one_of
from minipeft.cli.outputs import Outputs
from minipeft.cli.settings import chosen_settings, settings_not_for
from minipeft.cli.terminal import Kept, cell, progress, table
from minipeft.errors import Bad

FAMILIES = ("llama", "gpt2", "bert", "t5", "vit")
DTYPES = ("float64", "float32")
LAWS = "laws that hold, family by family; –: the method does not fit there"
DIFFERENCE = "difference: err/(u·cond) in float64, the larger of two sizes"


def _libraries(incomplete: str) -> list[str]:
    from minipeft.conformance.program import PEERS

    return [p for p in PEERS if p.startswith(incomplete)]


def check(
    methods: Methods = None,
    family: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="llama, gpt2, bert, t5, vit (default: all).", autocompletion=one_of(*FAMILIES)),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float64 or float32.", autocompletion=one_of(*DTYPES))] = "float64",
    set_: Set = None,
    targets: Targets = None,
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A library to compare with instead, live: peft, adapters, …", autocompletion=_libraries),
    ] = None,
    python: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="The interpreter that the library is installed for (default: this one); minipeft need not be."
        ),
    ] = None,
    json_: Json = None,
    backend: Backend = None,
) -> None:
    """Every law on methods (default: all), on tiny models of all families, and what they still lack: files, cases, pages.

    Exits with 1 if a law is broken or something is missing. With --against, each beside a library's instead: outputs,
    gradients, merged weights in float64; 1 is then a difference that is not known.

    Examples:
        minipeft check METHOD
        minipeft check METHOD --family llama --set r=4
        minipeft check METHOD --against peft
    """
    import dataclasses

    import numpy as np

    from minipeft.conformance import laws, tiny
    from minipeft.conformance.missing import missing
    from minipeft.method import METHODS, load_methods, method_class
    from minipeft.settings import small

    outputs = Outputs(json=json_)
    load_methods()
    known("--dtype", dtype, DTYPES)
    families = list(dict.fromkeys(known("--family", f, FAMILIES) for f in family or FAMILIES))
    chosen = [method_class(n) for n in dict.fromkeys(methods or sorted(METHODS))]
    setting = chosen_settings(chosen, set_, targets)
    settings_not_for(setting, set_)
    if against is not None:
        if not methods:
            raise Bad("--against: expected the methods to compare, found none")
        return _beside(chosen, setting, against, python, outputs)
    verdicts: Kept[tuple[str, Any]] = Kept()
    with verdicts, progress("checking", len(chosen)) as tick:
        for cls in chosen:
            tick.doing(cls.name)
            found: list[Any] = []
            for f in families:
                made = dataclasses.replace(small(cls, tiny.arch(f)), **setting[cls.name])
                found += laws.check(made, [f], np.dtype(dtype).type)
            found += [laws.Verdict("files", "", "fail", str(m)) for m in missing(cls)]
            verdicts.append((cls.name, found))
            tick(cls.name, _counted(found))
    outputs.show(_table(verdicts, families), LAWS, *_broken(verdicts))
    outputs.json({n: [dataclasses.asdict(v) for v in vs] for n, vs in verdicts})
    verdicts.finish()
    if any(v.outcome == "fail" for _, vs in verdicts for v in vs):
        raise typer.Exit(1)


def _counted(verdicts: list[Any]) -> str:
    failed = sum(v.outcome == "fail" for v in verdicts)
    holding = f"{sum(v.outcome == 'pass' for v in verdicts)} hold"
    return f"{failed} broken, {holding}" if failed else holding


def _table(verdicts: list[tuple[str, Any]], families: list[str]) -> Any:
    shown = table("method", *families)
    for name, every in verdicts:
        row = []
        for f in families:
            some = [v for v in every if v.family == f and v.outcome != "n/a"]
            style = "red" if any(v.outcome == "fail" for v in some) else "green"
            row.append(f"[{style}]{_counted(some)}[/{style}]" if some else "–")
        shown.add_row(cell(name), *row)
    return shown


def _broken(verdicts: list[tuple[str, Any]]) -> list[str]:
    """A line for each law that is broken, and then for each thing that is missing."""
    failed = [(n, v) for n, vs in verdicts for v in vs if v.outcome == "fail"]
    lines = [f"{n}, {v.family}, {v.law}: {v.reason}" for n, v in failed if v.family]
    lacks = [f"  {v.reason}" for n, v in failed if not v.family]
    names = ", ".join(dict.fromkeys(n for n, v in failed if not v.family))
    return [*lines, *([f"still missing, of {names}:", *lacks] if lacks else [])]


def _beside(classes: list[Any], settings: Any, library: str, python: str | None, outputs: Outputs) -> None:
    """Methods beside those of a library, a table each; exits with 1 for a difference that is not known, and if nothing was compared."""
    import dataclasses

    from minipeft.conformance.beside import beside
    from minipeft.conformance.program import interpreters
    from minipeft.conformance.report import STYLES

    if python is not None:
        interpreters([python], [library])
    found = {}
    with progress("comparing", len(classes)) as tick:
        for cls in classes:
            tick.doing(cls.name)
            found[cls.name] = beside(cls, settings[cls.name], library, python)
            tick(cls.name)
    for name, seen in found.items():
        rows, taken = seen.rows, ", ".join(f"{f}={v}" for f, v in seen.readings.items())
        shown = table(
            f"{name}, {taken}" if taken else name,
            "difference",
            "bound",
            "verdict",
            right=("difference", "bound"),
        )
        for r in rows:
            ratio = "–" if r.ratio is None else f"{r.ratio:.2g}"
            shown.add_row(
                cell(r.quantity),
                ratio,
                f"{r.bound:g}",
                f"[{STYLES[r.outcome]}]{r.outcome}{' (known)' * bool(r.known)}[/]",
            )
        why = dict.fromkeys(f"{r.quantity}: {r.reason}{f' ({r.known})' if r.known else ''}" for r in rows if r.reason)
        outputs.show(shown, DIFFERENCE, *why)
    outputs.json({name: [dataclasses.asdict(r) for r in seen.rows] for name, seen in found.items()})
    new = {r.outcome for seen in found.values() for r in seen.rows if not r.known}
    if new & {"FAIL", "ERROR"} or not new & {"PASS", "READING"}:
        raise typer.Exit(1)
