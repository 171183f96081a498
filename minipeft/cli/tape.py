"""`minipeft tape`."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from minipeft.cli.check import FAMILIES
from minipeft.cli.options import Backend, Html, Json, Methods, Set, Svg, Targets, known, one_of
from minipeft.cli.outputs import Outputs
from minipeft.cli.settings import chosen_settings, settings_not_for
from minipeft.cli.terminal import Kept, progress, terminal
from minipeft.errors import Bad


def tape(
    methods: Methods = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="A few methods in columns, those named before them.")
    ] = False,
    top: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Attach what is named in so many of the uppermost layers alone."),
    ] = None,
    layers: Annotated[int, typer.Option(min=1, max=64, help="Layers of the tiny model.")] = 2,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help=f"{', '.join(FAMILIES)} (default: the first that fits).", autocompletion=one_of(*FAMILIES)),
    ] = None,
    set_: Set = None,
    targets: Targets = None,
    svg: Svg = None,
    html: Html = None,
    json_: Json = None,
    backend: Backend = None,
) -> None:
    """One forward and backward pass of a tiny model: what is on the tape, what it keeps, where the gradient ends.

    Examples:
        minipeft tape
        minipeft tape METHOD --set r=4 --top 1
        minipeft tape METHOD OTHER --html tape.html --svg tape.svg
    """
    from minipeft import tape as job
    from minipeft.method import method_class

    outputs = Outputs(svg=svg, html=html, json=json_)
    family = known("--model", model, FAMILIES) if model else None
    if top is not None and not methods:
        raise Bad("--top: expected the name of a method beside it, found none")
    if top is not None and top > layers:
        raise Bad(f"--top {top}: expected at most {layers}, the model's layers (--layers)")
    asked = [job.Example(m, m, top) for m in dict.fromkeys(methods or ())]
    asked += job.USUAL if side_by_side or not asked else ()
    classes = {e.method: method_class(e.method) for e in asked}
    chosen = chosen_settings(classes.values(), set_, targets)
    settings_not_for(chosen, set_)
    how: dict[str, dict[str, Any]] = {
        name: dict(given=chosen[cls.name], family=family, layers=layers) for name, cls in classes.items()
    }
    tapes: Kept[Any] = Kept()
    labels = {e.method: e.label for e in asked if e.top is None or methods}
    pages: dict[str, list[Any]] = {}
    steps = len(asked) + (len(labels) if html else 0)
    with tapes, progress("recording", steps) as tick:
        for e in asked:
            tick.doing(e.label)
            tapes.append(job.example(e.method, top=e.top, label=e.label, **how[e.method]))
            tick(e.label)
        for method, label in labels.items() if html else ():
            tick.doing(f"{label} by layer")
            pages[label] = job.by_layer(method, label=label, **how[method])
            tick(label)
    shown: Any = tapes[0] if len(asked) == 1 and tapes else list(tapes)
    if tapes:
        outputs.show(*map(_styled, job.lines(shown, min(job.WIDTH, terminal().width))))
        outputs.write("svg", lambda: job.svg(shown))
        outputs.write("html", lambda: job.page(pages, tapes if len(tapes) > 1 else ()))
    outputs.json([t.to_json() for t in tapes])
    tapes.finish()


def _styled(line: Any) -> Any:
    from rich.text import Text

    from minipeft.tape import ROLES

    return Text(line.text, style=ROLES.get(line.role, ""), no_wrap=True, overflow="ignore")
