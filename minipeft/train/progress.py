"""A bar for a terminal that shows how a training goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from minipeft.errors import Bad


def progress_bar(label: str = "training") -> tuple[Any, Callable]:
    """A rich progress bar with loss, tokens per second and time left, and the callback for `fit`; use it as a context.

    It is drawn on standard error, and only if that is a terminal.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        raise Bad("a progress bar needs rich: pip install rich") from None
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(label, total=None, loss=float("nan"), speed=0.0)
    started = time.perf_counter()

    def update(t: int, total: int, loss: float, tokens: int) -> None:
        bar.update(task, completed=t, total=total, loss=loss, speed=tokens / max(time.perf_counter() - started, 1e-9))

    return bar, update
