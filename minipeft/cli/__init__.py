"""The command line, one file a command. A command imports what it needs when it runs, so that starting costs next to nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

try:
    import typer
except ImportError:
    sys.exit('minipeft: the command line needs typer and rich: pip install "minipeft[cli]"')

from minipeft import __version__
from minipeft.cli.bench import bench
from minipeft.cli.check import check
from minipeft.cli.common import Backend
from minipeft.cli.compare import compare
from minipeft.cli.convert import convert
from minipeft.cli.list import list_
from minipeft.cli.merge import merge
from minipeft.cli.replay import replay
from minipeft.cli.show import show
from minipeft.cli.train import train
from minipeft.cli.verify import judging
from minipeft.errors import Bad, Note

app = typer.Typer(
    name="minipeft",
    help="Every parameter-efficient fine-tuning method: readable, checked, runnable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"minipeft {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    backend: Backend = None,
) -> None:
    pass


app.command("list")(list_)
for command in (show, compare, train, merge, convert, replay, check):
    app.command()(command)
app.add_typer(judging)
app.command()(bench)


def main(argv: Sequence[str] | None = None, run: Callable = app) -> None:
    """Entry point: a user's mistake is one line on standard error and exit status 2, never a traceback."""
    from minipeft.engine.backend import explained

    plainly = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *more: (
        f"minipeft: {message}\n" if category is Note else plainly(message, category, *more)
    )
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
