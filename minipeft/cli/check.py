"""`minipeft check`."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from minipeft.cli.options import Backend, Json, Methods, Set, Targets, known, one_of
from minipeft.cli.outputs import Outputs
from minipeft.cli.settings import chosen_settings, settings_not_for
from minipeft.cli.terminal import Kept, cell, progress, table

FAMILIES = ("llama", "gpt2", "bert", "t5", "vit")
DTYPES = ("float64", "float32")


def check(
    methods: Methods = None,
    family: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="llama, gpt2, bert, t5, vit (default: all).", autocompletion=one_of(*FAMILIES)),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float64 or float32.", autocompletion=one_of(*DTYPES))] = "float64",
    set_: Set = None,
    targets: Targets = None,
    json_: Json = None,
    backend: Backend = None,
) -> None:
    """Every law on methods (default: all), on tiny models of all families; exits with 1 if one is broken.

    Examples:
        minipeft check METHOD
        minipeft check METHOD --family llama --set r=4
    """
    import dataclasses

    import numpy as np

    from minipeft.conformance import laws, tiny
    from minipeft.method import METHODS, load_methods, method_class
    from minipeft.settings import small

    outputs = Outputs(json=json_)
    load_methods()
    known("--dtype", dtype, DTYPES)
    families = list(dict.fromkeys(known("--family", f, FAMILIES) for f in family or FAMILIES))
    chosen = [method_class(n) for n in dict.fromkeys(methods or sorted(METHODS))]
    setting = chosen_settings(chosen, set_, targets)
    settings_not_for(setting, set_)
    verdicts: Kept[tuple[str, Any]] = Kept()
    with verdicts, progress("checking", len(chosen)) as tick:
        for cls in chosen:
            tick.doing(cls.name)
            found: list[Any] = []
            for f in families:
                made = dataclasses.replace(small(cls, tiny.arch(f)), **setting[cls.name])
                found += laws.check(made, [f], np.dtype(dtype).type)
            verdicts.append((cls.name, found))
            tick(cls.name, _counted(found))
    outputs.show(_table(verdicts, families), *_broken(verdicts))
    outputs.json({n: [dataclasses.asdict(v) for v in vs] for n, vs in verdicts})
    verdicts.finish()
    if any(v.outcome == "fail" for _, vs in verdicts for v in vs):
        raise typer.Exit(1)


def _counted(verdicts: list[Any]) -> str:
    failed = sum(v.outcome == "fail" for v in verdicts)
    holding = f"{sum(v.outcome == 'pass' for v in verdicts)} hold"
    return f"{failed} broken, {holding}" if failed else holding


def _table(verdicts: list[tuple[str, Any]], families: list[str]) -> Any:
    shown = table("method", *families, caption="laws that hold, family by family; –: the method does not fit there")
    for name, every in verdicts:
        row = []
        for f in families:
            some = [v for v in every if v.family == f and v.outcome != "n/a"]
            style = "red" if any(v.outcome == "fail" for v in some) else "green"
            row.append(f"[{style}]{_counted(some)}[/{style}]" if some else "–")
        shown.add_row(cell(name), *row)
    return shown


def _broken(verdicts: list[tuple[str, Any]]) -> list[str]:
    return [f"{n}, {v.family}, {v.law}: {v.reason}" for n, vs in verdicts for v in vs if v.outcome == "fail"]
