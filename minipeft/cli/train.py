"""`minipeft train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.common import Backend, Dtype, settings
from minipeft.errors import Bad


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
    begun = job.start(task, settings(cls, task.model.arch, set_ or []), seed)
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
