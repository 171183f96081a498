"""What is shown: consoles of the right width, text of unknown origin made harmless, and how far a job has come."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

from minipeft.plain import cell, plain

__all__ = ["Kept", "Progress", "cell", "plain", "progress", "table", "terminal"]

T = TypeVar("T")
WIDTH = 80  # of what is no terminal


def terminal(stderr: bool = False) -> Any:
    """A rich console for standard output or standard error: as wide as the terminal, else 80 columns (or $COLUMNS).

    No colours and no other codes in a pipe, with NO_COLOR, or on a dumb terminal.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    wide = int(columns) if columns.isdecimal() and int(columns) else None if stream.isatty() else WIDTH
    plain_only = bool(os.environ.get("NO_COLOR")) or _dumb()
    return Console(
        file=stream, width=wide, color_system=None if plain_only else "auto", highlight=False, markup=True, emoji=False
    )


def _dumb() -> bool:
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def table(*columns: str, right: tuple[str, ...] = (), fold: tuple[str, ...] = (), **how: Any) -> Any:
    """An empty table of rich in this project's style: a line a row, but for the columns in `fold`; `right` hold numbers."""
    from rich import box
    from rich.table import Table

    made = Table(
        header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD, show_edge=False, caption_justify="left", **how
    )
    for c in columns:
        folds = c in fold
        made.add_column(
            c, justify="right" if c in right else "left", no_wrap=not folds, overflow="fold" if folds else "ellipsis"
        )
    return made


class Progress:
    """How far a job has come. Call it as each thing ends: `tick("one")`, `tick("one", "50 laws hold")`."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done, self.now = label, total, 0, ""
        self.out = sys.stdout  # which a bar takes for itself while it is there
        self.begun = time.monotonic()

    def __call__(self, name: str = "", said: str = "", advance: int = 1) -> None:
        """`advance` more are done, `name` the last of them; `said` is its result, which a pipe is told in any case."""
        self.done += advance
        self.now = plain(name)
        self.shown(f"{self.now}: {plain(said)}" if said else "")

    def doing(self, name: str) -> None:
        """What is being worked on from here."""
        self.now = plain(name)
        self.shown("")

    def of(self, done: int, total: int, name: str = "", said: str = "") -> None:
        """The same for a job that counts itself."""
        self.total = total
        self(name, said, advance=done - self.done)

    def line(self, line: str) -> None:
        """A line of the result, on standard output at once."""
        print(plain(line), file=self.out, flush=True)

    def shown(self, line: str) -> None:
        """Show where the job is; `line` is what has just ended, if that has a result."""


class _Bar(Progress):
    """A bar on a terminal."""

    def __init__(self, label: str, total: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Rich

        super().__init__(label, total)
        columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=20)]
        columns += [MofNCompleteColumn()] if total is not None else []
        self.bar = Rich(*columns, TimeElapsedColumn(), console=terminal(stderr=True), transient=True)
        self.task = self.bar.add_task(label, total=total)

    def shown(self, line: str) -> None:
        about = f"{self.label} {self.now}".strip()
        about = about if len(about) <= 40 else about[:39] + "…"
        self.bar.update(self.task, completed=self.done, total=self.total, description=about)

    def line(self, line: str) -> None:
        if not self.out.isatty():
            super().line(line)
            return
        self.bar.console.print(plain(line), markup=False, highlight=False, soft_wrap=True)  # above the bar


class _Lines(Progress):
    """Lines on standard error: one as each thing ends, and at times one that says what is being done."""

    def __init__(self, label: str, total: int | None) -> None:
        super().__init__(label, total)
        self.lock, self.over = threading.Lock(), threading.Event()
        self.said_at = self.begun
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()

    def shown(self, line: str) -> None:
        if line:
            self._say(line)

    def _beat(self) -> None:
        pause = 2.0  # between lines of one thing that takes long: 2 s, and half as much again each time, up to 30 s
        now = self.now
        while not self.over.wait(0.1):
            pause, now = (pause, now) if self.now == now else (2.0, self.now)
            if time.monotonic() - self.said_at >= pause:
                self._say(self.now)
                pause = min(1.5 * pause, 30.0)

    def _say(self, line: str) -> None:
        seconds = time.monotonic() - self.begun
        count = "" if self.total is None else f"{self.done} of {self.total}, "
        with self.lock, contextlib.suppress(OSError, ValueError):
            self.said_at = time.monotonic()
            print(f"{self.label} {line}".strip() + f" ({count}{seconds:.0f} s)", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress]:
    """Says on standard error what is being done: a bar on a terminal; in a pipe a line as each thing ends and, beyond
    two seconds, what is being worked on. Nothing of it is ever on standard output."""
    if sys.stderr.isatty() and not _dumb():
        bar = _Bar(label, total)
        with bar.bar:
            yield bar
        return
    lines = _Lines(label, total)
    try:
        yield lines
    finally:
        lines.over.set()
        lines.thread.join(1.0)


class Kept(list[T]):
    """Results as they come. Ctrl-C ends the block, not the command: what is there is shown and written first.

    with Kept() as rows, progress("comparing", n) as tick:
        for row in work(): rows.append(row); tick(row.name, …)
    show(rows)
    rows.finish()                      # only now does the command end, with status 130
    """

    interrupted = False

    def __enter__(self) -> Kept[T]:
        import rich.table  # noqa: F401  (here, and not in the second that Ctrl-C leaves)

        return self

    def __exit__(self, kind: Any, *rest: object) -> bool:
        self.interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        return self.interrupted

    def finish(self) -> None:
        """Raises KeyboardInterrupt if the work was interrupted."""
        if self.interrupted:
            raise KeyboardInterrupt
