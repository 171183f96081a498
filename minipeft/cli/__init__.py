"""The command line, one file a command. A command imports what it needs when it runs, so that starting costs next to nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

try:
    import typer
except ImportError:
    sys.exit("minipeft: the command line needs typer and rich: pip install typer rich")
except KeyboardInterrupt:
    sys.exit(130)

from minipeft import __version__
from minipeft.cli.bench import bench
from minipeft.cli.cases import recorded
from minipeft.cli.check import check
from minipeft.cli.combine import combine
from minipeft.cli.compare import compare
from minipeft.cli.convert import convert
from minipeft.cli.interrupt import interruptible
from minipeft.cli.list import list_
from minipeft.cli.merge import merge
from minipeft.cli.new import made
from minipeft.cli.options import Backend
from minipeft.cli.record import record
from minipeft.cli.replay import replay
from minipeft.cli.show import show
from minipeft.cli.site import site
from minipeft.cli.tape import tape
from minipeft.cli.terminal import plain
from minipeft.cli.train import train
from minipeft.cli.verify import judging
from minipeft.cli.verify_diff import bisect, diff
from minipeft.cli.verify_field import field
from minipeft.cli.verify_new import new
from minipeft.errors import Bad, Note
from minipeft.processes import launched

# libraries that a command may need and that are not installed with the package; pip knows them by these names
OPTIONAL = (
    "rich",
    "tokenizers",
    "matplotlib",
    "latex2mathml",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
)

app = typer.Typer(
    name="minipeft",
    help="Every parameter-efficient fine-tuning method: readable, checked, runnable.",
    no_args_is_help=True,
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
for command in (show, tape, compare, train, merge, combine, convert, replay, check, record):
    app.command()(command)
for part in (new, field, diff, bisect):
    judging.command()(part)
app.add_typer(judging)
app.add_typer(recorded)
app.add_typer(made)
app.command()(bench)
app.command()(site)


def _noted(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    """A note is one line, without the place in the code that a warning has."""
    place = "note" if issubclass(category, Note) else f"{filename}:{lineno}: {category.__name__}"
    print(f"minipeft: {place}: {plain(message)}", file=sys.stderr)


def main(argv: Sequence[str] | None = None, run: Callable = app) -> None:
    """Entry point: a user's mistake is one line on standard error and exit status 2, never a traceback.

    130 and 143 are the statuses of a command that was ended; what it had by then it has shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a character that this terminal has not is spelt out
    if launched()[0]:  # of several that mpiexec started one speaks
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    with interruptible() as asked:
        status = _status(argv, run)
        if status == 0:
            status = _flushed()
        if asked.status or status == 130:
            asked.tell()
    sys.exit(asked.status or status)


def _status(argv: Sequence[str] | None, run: Callable) -> int:
    usage, shown = typer.BadParameter.__mro__[1:3]
    try:
        from minipeft.engine.backend import explained  # NumPy, which takes a while: Ctrl-C may come meanwhile

        if "" in (sys.argv[1:] if argv is None else argv):
            raise Bad("expected a word, found an empty one")
        with explained(), warnings.catch_warnings():
            warnings.showwarning = _noted
            return run(argv, prog_name="minipeft", standalone_mode=False) or 0
    except shown as why:  # type: ignore[misc]
        context = getattr(why, "ctx", None)
        if type(why).__name__ == "NoArgsIsHelpError":  # it has been printed
            return 2
        where = f" (see {context.command_path} --help)" if context and isinstance(why, usage) else ""
        return _told(why.format_message().rstrip(".") + where)
    except Bad as why:
        return _told(why)
    except ModuleNotFoundError as why:
        if (package := (why.name or "").partition(".")[0]) not in OPTIONAL:
            raise
        return _told(f"this needs {package}: pip install {package}")
    except BrokenPipeError:
        return _broken_pipe()
    except SystemExit:  # how rich and typer end when nobody reads standard output any more
        return _broken_pipe()
    except (OSError, MemoryError) as why:
        return _told(why if str(why) else type(why).__name__)
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _told(why: object) -> int:
    print(f"minipeft: {plain(why)}", file=sys.stderr)
    return 2


def _flushed() -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe()
    except OSError as why:
        return _told(why)
    return 0


def _broken_pipe() -> int:
    """Whoever read standard output has had enough: not a failure, and not a word."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    main()
