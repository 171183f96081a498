"""The command line. Every command imports what it needs when it runs, so that starting costs next to nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

try:
    import typer
except ImportError:
    sys.exit('minipeft: the command line needs typer and rich: pip install "minipeft[cli]"')

from minipeft import __version__
from minipeft.errors import Bad

app = typer.Typer(
    name="minipeft",
    help="Every parameter-efficient fine-tuning method: readable, checked, runnable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 200  # a table in a pipe is not folded
    return Console(stderr=stderr, width=wide, soft_wrap=stderr, highlight=False)


def _version(asked: bool) -> None:
    if asked:
        print(f"minipeft {__version__}")
        raise typer.Exit


def _use(name: str | None) -> str | None:
    if name is not None:
        from minipeft.engine.backend import use

        use(name)
    return name


Backend = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--backend", callback=_use, help="numpy or cupy (default: MINIPEFT_BACKEND, else numpy)."),
]


def _known_dtype(name: str | None) -> str | None:
    if name not in (None, *DTYPES):
        from minipeft.errors import near

        raise Bad(f"--dtype {name}: expected one of {', '.join(DTYPES)}{near(str(name), DTYPES)}")
    return name


DTYPES = ("float32", "float64", "bfloat16")
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--dtype",
        callback=_known_dtype,
        help="float32, float64, or bfloat16: matrices of the base are held so, all else is float32. An adapter belongs "
        "to the base in the type that it was trained on. Default: float32.",
    ),
]


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    backend: Backend = None,
) -> None:
    pass


@app.command("list")
def list_(
    json_: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    markdown: Annotated[bool, typer.Option(help="The table of README.md.")] = False,
) -> None:
    """All methods, family by family.

    Example: [bold]minipeft list[/bold]
    """
    from minipeft.conformance import docstrings
    from minipeft.method import METHODS, load_methods

    load_methods()
    found = [docstrings.facts(cls) for cls in METHODS.values()]
    found.sort(key=lambda m: (m["family"], m["name"]))
    if json_:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if markdown:
        print(docstrings.markdown(found))
        return
    from rich.table import Table

    table = Table("method", "family", "what it is", "merges", "paper", header_style="bold", pad_edge=False)
    for m in found:
        table.add_row(m["name"], m["family"], m["title"], m["merges"], m["url"])
    _console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A method, as `minipeft list` names it.")],
    code: Annotated[bool, typer.Option(help="Print the whole file.")] = False,
) -> None:
    """One method: its equations, its arrays, where it differs from others, and its file.

    Example: [bold]minipeft show dora[/bold]   [dim]minipeft show dora --code[/dim]
    """
    import dataclasses
    import inspect

    from minipeft.method import method_class

    cls = method_class(name)
    file = inspect.getsourcefile(cls) or ""
    console = _console()
    if code:
        from rich.syntax import Syntax

        console.print(Syntax(Path(file).read_text(encoding="utf-8"), "python"))
        return
    console.print((sys.modules[cls.__module__].__doc__ or "").strip(), markup=False)
    console.print("\n[bold]settings[/bold]")
    for f in dataclasses.fields(cls):
        console.print(f"    {f.name} = {f.default!r}", markup=False)
    console.print("\n[bold]file[/bold]    ", end="")
    console.print(file, markup=False)


@app.command()
def compare(
    methods: Annotated[Optional[list[str]], typer.Argument(help="Methods to compare (default: all).")] = None,  # noqa: UP045
    base: Annotated[
        Path | None, typer.Option(help="A checkpoint folder (default: the decoder of the package).")
    ] = None,
    data: Annotated[Optional[Path], typer.Option(help="A CSV file with columns text, label and perhaps split.")] = None,  # noqa: UP045
    steps: Annotated[int, typer.Option(min=1, help="Training steps for each method.")] = 40,
    lr: Annotated[
        float | None, typer.Option(help="One learning rate for all (default: each method's usual one).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same numbers.")] = 0,
    jobs: Annotated[Optional[int], typer.Option(min=1, help="Processes (default: one for each core).")] = None,  # noqa: UP045
    html: Annotated[Optional[Path], typer.Option(help="Write one self-contained page.")] = None,  # noqa: UP045
    png: Annotated[Optional[Path], typer.Option(help="Write the plots.")] = None,  # noqa: UP045
    json_: Annotated[Path | None, typer.Option("--json", help="Write all numbers ('-': to standard output).")] = None,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Adapt one base to one task with every method, and measure what each costs and gives.

    Examples: [bold]minipeft compare[/bold]   [dim]minipeft compare lora dora --steps 100 --html out.html[/dim]
    [dim]minipeft compare lora --base path/to/checkpoint --data reviews.csv[/dim]
    """
    import dataclasses
    import time

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from minipeft import compare as job
    from minipeft.method import method_class

    begun = time.perf_counter()
    for name in methods or ():
        method_class(name)
    console = _console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # here first: a mistake is found before any process starts
    task = job.prepare(base, data, steps=steps, seed=seed, dtype=dtype)
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task("comparing", total=None)

        def progress(done: int, total: int, name: str) -> None:
            bar.update(line, total=total, completed=done, description=f"comparing, {name} done")

        rows = job.compare(
            methods or (), seed=seed, lr=lr, jobs=jobs, progress=progress, base=base, csv=data, steps=steps, dtype=dtype
        )
    seconds = time.perf_counter() - begun
    about = (
        f"{len(rows)} rows on {base or 'the decoder of the package'}, {data or 'the snippets of the package'}: "
        f"{len(task.train)} steps of {task.train[0].rows} examples, {sum(b.rows for b in task.test)} held-out ones, seed {seed}."
    )
    numbers = [dataclasses.asdict(r) for r in rows]
    if json_ is not None and str(json_) == "-":
        print(json.dumps(numbers, indent=2))
    else:
        _console().print(job.table(rows))
        print(f"{about} {seconds:.0f} seconds.")
    if json_ is not None and str(json_) != "-":
        from minipeft.checkpoints.files import write_json

        write_json(json_, numbers)
    if html is not None:
        job.write_html(rows, html, about)
    if png is not None:
        job.write_png(rows, png)
    if any(not r.base_unchanged for r in rows):
        raise Bad("a base array was changed")


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="A method, as `minipeft list` names it.")],
    out: Annotated[Path, typer.Argument(help="Folder for the adapter.")],
    base: Annotated[
        Path | None, typer.Option(help="A checkpoint folder (default: the decoder of the package).")
    ] = None,
    data: Annotated[Optional[Path], typer.Option(help="A CSV file with columns text, label and perhaps split.")] = None,  # noqa: UP045
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="A setting of the method, r=4.")] = None,  # noqa: UP045
    steps: Annotated[int, typer.Option(min=1)] = 100,
    lr: Annotated[Optional[float], typer.Option()] = None,  # noqa: UP045
    optimiser: Annotated[str, typer.Option(help="adamw, sgd or adafactor.")] = "adamw",
    schedule: Annotated[str, typer.Option(help="constant, linear or cosine.")] = "linear",
    warmup: Annotated[int, typer.Option(min=0)] = 10,
    seed: Annotated[int, typer.Option()] = 0,
    graph: Annotated[bool, typer.Option("--graph", help="On a GPU: replay steps as CUDA graphs.")] = False,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Train one method on a classification task and save the adapter. Started again, it goes on where it was killed.

    Example: [bold]minipeft train lora out/ --set r=4 --steps 200[/bold]
    """
    from minipeft import compare as job
    from minipeft.checkpoints.native import save_adapter
    from minipeft.errors import near
    from minipeft.method import method_class
    from minipeft.train import OPTIMISERS, fit, progress_bar

    cls = method_class(method)
    if optimiser not in OPTIMISERS:
        raise Bad(f"optimiser {optimiser!r}: expected one of {', '.join(OPTIMISERS)}{near(optimiser, OPTIMISERS)}")
    task = job.prepare(base, data, steps=steps, seed=seed, dtype=dtype)
    begun = job.start(task, _settings(cls, task.model.arch, set_ or []), seed)
    rule = OPTIMISERS[optimiser](lr=lr or cls.usual_lr)
    bar, update = progress_bar(f"training {method}")
    out.mkdir(parents=True, exist_ok=True)
    with bar:
        done = fit(begun, task.train, steps=steps, optimiser=rule, schedule=schedule, warmup=min(warmup, steps), clip=1.0,
                   seed=seed, checkpoint=out / "training.safetensors", graph=graph, progress=update)  # fmt: skip
    save_adapter(done.adapted, out)
    loss, accuracy = job.judge(done.adapted, task.test)
    print(
        f"{out}: {method}, {done.adapted.adapters[0].size:,} trained numbers, held-out loss {loss:.3f}, accuracy {100 * accuracy:.1f} %"
    )


def _settings(cls: Any, arch: Any, given: Sequence[str]) -> Any:
    """The method with settings given as words, read as its fields' types."""
    import ast
    import dataclasses

    from minipeft.errors import near

    base = cls.sized(arch)
    known = {f.name: getattr(base, f.name) for f in dataclasses.fields(cls)}
    chosen = {}
    for word in given:
        key, eq, text = word.partition("=")
        if not eq or key not in known:
            raise Bad(f"--set {word}: {cls.name} has no setting {key!r}{near(key, known)}; it has {', '.join(known)}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if isinstance(known[key], float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if known[key] is not None and value is not None and type(value) is not type(known[key]):
            raise Bad(
                f"--set {word}: expected {type(known[key]).__name__} like {known[key]!r}, found {type(value).__name__}"
            )
        chosen[key] = value
    return dataclasses.replace(base, **chosen)


@app.command()
def merge(
    base: Annotated[Path, typer.Argument(help="The base checkpoint folder.")],
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, ours or PEFT's.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Fold an adapter into its base: an ordinary checkpoint that transformers loads.

    Example: [bold]minipeft merge base/ adapter/ merged/[/bold]
    """
    from minipeft.checkpoints import load, save_model
    from minipeft.checkpoints.files import read_json
    from minipeft.run import merge as fold

    merged = fold(_attached(load(base, dtype), adapter))
    save_model(merged, out, read_json(base / "config.json"))
    for extra in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (base / extra).exists():
            from minipeft.checkpoints.files import write_bytes

            write_bytes(out / extra, (base / extra).read_bytes())
    print(f"{out}: {merged.size:,} parameters, {merged.dtype}")


def _attached(model: Any, folder: Path) -> Any:
    """The model with an adapter folder of either kind."""
    from minipeft.checkpoints.files import existing
    from minipeft.checkpoints.native import load_adapter
    from minipeft.checkpoints.peft_io import load_peft

    existing(folder, "folder")
    if (folder / "adapter.json").exists():
        return load_adapter(model, folder)
    if (folder / "adapter_config.json").exists():
        return load_peft(model, folder)
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    raise Bad(
        f"{folder}: expected adapter.json (ours) or adapter_config.json (PEFT's), found {', '.join(found) or 'nothing'}"
    )


@app.command()
def convert(
    base: Annotated[Path, typer.Argument(help="The base checkpoint folder.")],
    adapter: Annotated[Path, typer.Argument(help="The adapter folder to read.")],
    out: Annotated[Path, typer.Argument(help="The adapter folder to write, of the other kind.")],
    dtype: Dtype = None,
) -> None:
    """Turn an adapter of PEFT into one of minipeft, or the other way round.

    Example: [bold]minipeft convert base/ peft_adapter/ ours/[/bold]
    """
    from minipeft.checkpoints import load
    from minipeft.checkpoints.native import save_adapter
    from minipeft.checkpoints.peft_io import save_peft

    adapted = _attached(load(base, dtype), adapter)
    ours = (adapter / "adapter.json").exists()
    (save_peft if ours else save_adapter)(adapted, out)
    a = adapted.adapters[0]
    print(f"{out}: {a.method.name}, {a.size:,} trained numbers, written for {'PEFT' if ours else 'minipeft'}")


@app.command()
def replay(
    cases: Annotated[list[Path], typer.Argument(help="Case folders.")],
    base: Annotated[Path, typer.Option(help="The base checkpoint folder.")],
    json_: Annotated[bool, typer.Option("--json", help="For machines, on standard output.")] = False,
    strict: Annotated[bool, typer.Option(help="Agreement to float32's rounding is not enough.")] = False,
    backend: Backend = None,
) -> None:
    """Compute recorded cases again, and exit with 0 only if all agree.

    A case is a folder with adapter/ and expected.safetensors. Example: [bold]minipeft replay --base base/ cases/*[/bold]
    """
    from rich.progress import Progress

    from minipeft.conformance.replay import replay_all

    with Progress(console=_console(stderr=True), transient=True) as bar:
        line = bar.add_task("replaying", total=len(cases))
        reports = replay_all(base, cases, lambda i, n, name: bar.update(line, completed=i, description=name))
    if json_:
        print(json.dumps([r.to_json() for r in reports], indent=2))
    else:
        _console().print(_replayed(reports, strict))
        agree = sum(r.agrees(strict) for r in reports)
        print(f"{agree} of {len(reports)} cases agree")
    if not all(r.agrees(strict) for r in reports):
        raise typer.Exit(1)


def _replayed(reports: Sequence[Any], strict: bool) -> Any:
    from rich.table import Table

    table = Table("case", "method", "", "logits", "loss", "gradients", "worst tensor", header_style="bold", pad_edge=False,
                  caption="err/(u·cond) in float64; rel: relative error, where no cond can be had")  # fmt: skip

    def shown(tensors: list[Any]) -> str:
        if not tensors:
            return "–"
        known = [t.ratio for t in tensors if t.ratio is not None]
        return f"{max(known):.2g}" if known else f"{max(t.relative for t in tensors):.1e} rel"

    for r in reports:
        verdict = (
            "[green]agrees[/green]"
            if r.agrees(strict)
            else "[red]DIFFERS[/red]"
            if not r.problem
            else "[red]ERROR[/red]"
        )
        if r.agrees(strict) and any(t.outcome == "float32" for t in r.tensors):
            verdict = "[green]agrees[/green] (float32)"
        worst = r.problem or (r.worst.name if r.worst else "–")
        table.add_row(r.case, r.method, verdict, shown(r.of("logits")), shown(r.of("loss")), shown(r.of("grad")), worst)
    return table


@app.command()
def check(
    names: Annotated[Optional[list[str]], typer.Argument(help="Methods (default: all).")] = None,  # noqa: UP045
    family: Annotated[Optional[list[str]], typer.Option(help="llama, gpt2, bert, t5, vit (default: all).")] = None,  # noqa: UP045
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    json_: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    backend: Backend = None,
) -> None:
    """Every law on a method, on tiny models of all families; exits with 1 if one is broken.

    Example: [bold]minipeft check dora[/bold]
    """
    import dataclasses

    import numpy as np
    from rich.progress import Progress

    from minipeft.conformance import laws
    from minipeft.method import METHODS, load_methods, method_class

    load_methods()
    if dtype not in ("float64", "float32"):
        raise Bad(f"--dtype {dtype}: expected float64 or float32")
    chosen = [method_class(n) for n in names] if names else [METHODS[n] for n in sorted(METHODS)]
    verdicts = {}
    with Progress(console=_console(stderr=True), transient=True) as bar:
        line = bar.add_task("checking", total=len(chosen))
        for cls in chosen:
            bar.update(line, description=cls.name)
            verdicts[cls.name] = list(laws.check(cls, family or None, np.dtype(dtype).type))
            bar.advance(line)
    if json_:
        print(json.dumps({n: [dataclasses.asdict(v) for v in vs] for n, vs in verdicts.items()}, indent=2))
    else:
        from rich.table import Table

        table = Table("method", *laws.LAWS, header_style="bold", pad_edge=False)
        for n, vs in verdicts.items():
            row = []
            for law in laws.LAWS:
                some = [v for v in vs if v.law == law]
                bad = [v.family for v in some if v.outcome == "fail"]
                fits = sum(v.outcome == "pass" for v in some)
                row.append(f"[red]{', '.join(bad)}[/red]" if bad else f"[green]{fits} pass[/green]" if fits else "–")
            table.add_row(n, *row)
        _console().print(table)
        for n, vs in verdicts.items():
            for v in vs:
                if v.outcome == "fail":
                    print(f"{n}, {v.family}, {v.law}: {v.reason}")
    if any(v.outcome == "fail" for vs in verdicts.values() for v in vs):
        raise typer.Exit(1)


judging = typer.Typer(
    name="verify",
    help="Judge implementations, anyone's, on the recorded cases.",
    no_args_is_help=False,
    invoke_without_command=True,
)
app.add_typer(judging)


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
    with Progress(console=_console(stderr=True), transient=True) as bar:
        for name in names:
            task = bar.add_task(name, total=len(chosen.cases))
            results += job.run(
                name, chosen, jobs=jobs, limit=limit, python=pythons.get(name), dtype=dtype, strict=strict,
                progress=lambda r, task=task: bar.advance(task),  # type: ignore[misc]
            )  # fmt: skip
    by_id = {c.id: c for c in chosen.cases}
    console = _console()
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
    with Progress(console=_console(stderr=True), transient=True) as bar:
        making = bar.add_task("environments", total=None)
        pythons = job.prepare(folder, lambda line: bar.update(making, description=line))
        tasks = {p: bar.add_task(p, total=len(chosen.cases)) for p in ("minipeft", *pythons)}
        results, unexpected = job.judge_all(pythons, chosen, jobs, limit, lambda p, r: bar.advance(tasks[p]))
    _console().print(report.matrix(results))
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
    _console().print(job.diff_table(rows, first, second))
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
    _console().print(job.diff_table(rows, "minipeft", implementation))
    if departed is not None:
        print(f"departs at {departed.name}")
        raise typer.Exit(1)
    print(f"the same in all {len(rows)} intermediates")


@app.command()
def bench(
    against: Annotated[
        str | None, typer.Option(help="peft: run torch and PEFT in turns with us, and print ratios.")
    ] = None,
    size: Annotated[Optional[list[str]], typer.Option(help="S, M, L, XL or GPT2 (default: S, M and L).")] = None,  # noqa: UP045
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="lora, prefix_tuning, oft, dora, ia3, houlsby (default: all; of GPT2 lora alone)."),
    ] = None,
    task: Annotated[Optional[list[str]], typer.Option(help="step, forward or generate (default: step).")] = None,  # noqa: UP045
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads for both sides.")] = 2,
    compile_: Annotated[bool, typer.Option("--compile", help="Measure torch.compile beside it.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Where our step's time and bytes go, by op.")] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="On a GPU: products in TensorFloat-32, on both sides.")] = False,
    bf16: Annotated[
        bool,
        typer.Option(
            "--bf16",
            help="Our base held in bfloat16; theirs as model.to(torch.bfloat16), activations too. What stays float32 "
            "here may be rounded by --tf32 beside it.",
        ),
    ] = False,
    sweep: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Measure a LoRA step against length and rank; plots and numbers go into this folder."),
    ] = None,
    json_: Annotated[Optional[Path], typer.Option("--json", help="Write all numbers.")] = None,  # noqa: UP045
    backend: Backend = None,
) -> None:
    """Time and peak memory of a training step, beside torch + PEFT on the same threads. On a GPU ours runs as CUDA graphs.

    Example: [bold]minipeft bench --against peft --size M --method lora[/bold]
    """
    import os

    from minipeft import bench as job

    if tf32:
        os.environ["MINIPEFT_TF32"] = "1"
    console = _console(stderr=True)
    dtype = "bfloat16" if bf16 else "float32"
    if profile:
        found = job.profile((size or ["M"])[0], (method or ["lora"])[0], dtype=dtype)
        _console().print(job.profile_table(found))
    elif sweep is not None:
        found = job.sweep(against, sweep, rounds, threads, console, dtype)
        _console().print(job.table(found))
    else:
        sizes, methods = size or ["S", "M", "L"], method or list(job.METHODS)
        found = job.bench(against, sizes, methods, rounds, threads, console, task or ["step"], compile_, dtype)
        _console().print(job.table(found))
        for why in [r["compiled"] for r in found if "compiled" in r]:
            console.print(f"torch.compile does not work here: {why}", soft_wrap=True)
    if json_ is not None:
        from minipeft.checkpoints.files import write_json

        write_json(json_, found)


def main(argv: Sequence[str] | None = None, run: Callable = app) -> None:
    """Entry point: a user's mistake is one line on standard error and exit status 2, never a traceback."""
    from minipeft.engine.backend import explained

    try:
        with explained():
            run(argv)
    except Bad as why:
        print(f"minipeft: {why}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
    except (OSError, MemoryError) as why:
        print(f"minipeft: {why or type(why).__name__}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("minipeft: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
