"""`minipeft combine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from minipeft.cli.adapters import folders_of, opened, refuse_place
from minipeft.cli.options import Base, Dtype, Seed, Weight, combinations, one_of
from minipeft.cli.terminal import plain, progress
from minipeft.errors import Bad


def combine(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="[BASE] ADAPTER... OUT",
            help="Adapter folders, ours or PEFT's, and the folder to write. The base may stand first.",
        ),
    ],
    base: Base = None,
    weight: Weight = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            autocompletion=combinations,
            help="cat: exactly the sum of changes; svd: the nearest of --rank, of any changes of weights; linear, ties, "
            "dare_linear, dare_ties, magnitude_prune and these with _svd: as PEFT names them.",
        ),
    ] = "cat",
    rank: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--rank", help="Of the kinds with svd: a number, or the share of Σ σ² to be kept, 0.9."),
    ] = None,
    density: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--density", help="How many of the numbers the kinds that thin keep, in (0, 1]."),
    ] = None,
    votes: Annotated[
        str, typer.Option("--votes", autocompletion=one_of("total", "frequency"), help="How ties elects a sign.")
    ] = "total",
    clamp: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--clamp", help="Cut what the svd gives at ± this quantile of its numbers."),
    ] = None,
    seed: Seed = 0,
    peft: Annotated[bool, typer.Option("--peft", help="Write it for PEFT.")] = False,
    dtype: Dtype = None,
) -> None:
    """Make one low-rank adapter of several, or of any one that changes weights.

    Example:
        minipeft combine adapter/ peft_adapter/ both/ --weight 0.7 --weight -0.3
        minipeft combine adapter/ low_rank/ --kind svd --rank 8 --peft
    """
    from minipeft.arithmetic import Combination
    from minipeft.arithmetic import combine as combined
    from minipeft.checkpoints.native import save_adapter
    from minipeft.interop.peft.writing import save_peft

    how = Combination(kind, _rank(rank), density, votes, clamp, seed)
    base, adapters, out = folders_of(folders, base)
    if weight and len(weight) != len(adapters):
        raise Bad(f"--weight: expected one for each of {len(adapters)} adapters, found {len(weight)}")
    refuse_place(out, "PEFT" if peft else "minipeft", base, *adapters)
    with progress("combining") as tick:
        tick.doing("reading base and adapters")
        adapted = opened(base, adapters, dtype)
        tick.doing("adding up")
        weights = weight or [1.0] * len(adapters)
        one = combined(adapted, {a.name: w for a, w in zip(adapted.adapters, weights)}, how)
        (save_peft if peft else save_adapter)(one, out)
    ranks = sorted({len(a) for k, a in one.adapters[0].arrays.items() if k.endswith(":A")})
    print(
        plain(f"{out}: {kind} of {len(adapters)}, rank {' to '.join(map(str, dict.fromkeys([ranks[0], ranks[-1]])))}")
    )


def _rank(word: str | None) -> int | float | None:
    try:
        return None if word is None else int(word) if word.isdecimal() else float(word)
    except ValueError:
        raise Bad(f"--rank: expected a number, or a share in (0, 1], found {word!r}") from None
