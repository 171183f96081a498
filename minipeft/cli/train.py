"""`minipeft train`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from minipeft.cli.adapters import refuse_place
from minipeft.cli.options import (
    Backend,
    Base,
    Data,
    Dtype,
    LearningRate,
    Length,
    Method,
    Seed,
    Set,
    Targets,
    Workers,
    known,
    many,
    one_of,
)
from minipeft.cli.outputs import note
from minipeft.cli.settings import chosen_settings, settings
from minipeft.cli.terminal import plain, progress
from minipeft.errors import Bad

OPTIMISERS = ("adamw", "sgd", "adafactor")
SCHEDULES = ("constant", "linear", "cosine")


def train(
    method: Method,
    out: Annotated[Path, typer.Argument(help="Folder for the adapter.")],
    base: Base = None,
    data: Data = None,
    length: Length = None,
    set_: Set = None,
    targets: Targets = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 100,
    lr: LearningRate = None,
    optimiser: Annotated[
        str, typer.Option(help="adamw, sgd or adafactor.", autocompletion=one_of(*OPTIMISERS))
    ] = "adamw",
    schedule: Annotated[
        str, typer.Option(help="constant, linear or cosine.", autocompletion=one_of(*SCHEDULES))
    ] = "linear",
    warmup: Annotated[int, typer.Option(min=0, help="Steps until the full rate.")] = 10,
    seed: Seed = 0,
    graph: Annotated[bool, typer.Option("--graph", help="On a GPU: replay steps as CUDA graphs.")] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Keep less for the backward pass, which computes each layer again.")
    ] = False,
    workers: Workers = None,
    dtype: Dtype = None,
    backend: Backend = None,
) -> None:
    """Train one method on a classification task and save the adapter. Started again, it goes on where it was killed.

    Examples:
        minipeft train METHOD adapter/ --set r=4 --steps 200
        minipeft train METHOD adapter/ --workers auto
        mpiexec -n 4 minipeft train METHOD adapter/
    """
    from minipeft import compare as job
    from minipeft.checkpoints.native import save_adapter
    from minipeft.method import method_class
    from minipeft.train import OPTIMISERS as RULES
    from minipeft.train import fit
    from minipeft.train.exchange import exchanging

    cls = method_class(method)
    chosen_settings([cls], set_, targets)  # a mistake is found before anything is read
    known("--optimiser", optimiser, OPTIMISERS)
    known("--schedule", schedule, SCHEDULES)
    if out.exists() and not out.is_dir():
        raise Bad(f"{out}: expected a folder, found a file")
    refuse_place(out, "minipeft")
    rule = RULES[optimiser](lr=job.usual_rate(cls) if lr is None else lr)
    kept = out / "training.safetensors"
    shares = _shares(workers)
    ranks_of = exchanging(shares if shares == "mpi" else 1)
    with ranks_of as ranks, progress(f"training {method}", steps) as tick, _told(kept):
        tick.doing("reading base and data")
        task = job.prepare(base, data, steps=steps, length=length, seed=seed, dtype=dtype)
        begun = job.start(task, settings(cls, task.model.arch, set_, targets), seed)
        note(task.notes)
        out.mkdir(parents=True, exist_ok=True)
        done = fit(begun, task.train, steps=steps, optimiser=rule, schedule=schedule, warmup=min(warmup, steps), clip=1.0,
                   seed=seed, checkpoint=kept, graph=graph, recompute=recompute, workers=ranks if shares == "mpi" else shares,
                   progress=lambda t, n, loss, tokens: tick.of(t, n, f"loss {loss:.3f}"))  # fmt: skip
        if ranks.rank:  # rank 0 does the rest
            return
        tick.doing("judging")
        save_adapter(done.adapted, out, classes=task.classes)
        loss, accuracy = job.judge(done.adapted, task.test)
    size = done.adapted.adapters[0].size
    shared = f", {done.ranks} ranks of which each sent {done.sent:,} bytes a step" if done.ranks > 1 else ""
    print(
        plain(
            f"{out}: {method}, {size:,} trained numbers{shared}, held-out loss {loss:.3f}, accuracy {100 * accuracy:.1f} %"
        )
    )


def _shares(workers: str | None) -> int | str:
    """What shares the training out: so many workers, "auto", or "mpi"."""
    from minipeft.processes import launched

    if (ranks := launched()[1]) > 1:
        if workers is not None:
            raise Bad(f"--workers {workers}: mpiexec has started {ranks} ranks already")
        return "mpi"
    return many(workers)


@contextlib.contextmanager
def _told(kept: Path) -> Iterator[None]:
    """When the training is interrupted, says what there is of it."""
    try:
        yield
    except KeyboardInterrupt:
        if kept.exists():
            print(plain(f"{kept} keeps what was trained: the same command goes on from there"), file=sys.stderr)
        raise
