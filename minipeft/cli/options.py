"""Options that mean the same in every command, and the words that complete."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from minipeft.errors import Bad, meant, near

# --- words that complete ----------------------------------------------------------------------------------------------


def method_names(incomplete: str) -> list[str]:
    """Methods that begin so."""
    from minipeft.method import METHODS, load_methods

    load_methods()
    return [n for n in sorted(METHODS) if n.startswith(incomplete)]


def named(words: Any) -> Any:
    """Methods as they are named, whatever the words' capitals and hyphens; a word that is none stays, for the command to refuse."""
    from minipeft.method import METHODS, load_methods

    if not words:
        return words
    load_methods()
    return (meant(words, METHODS) or words) if isinstance(words, str) else [meant(w, METHODS) or w for w in words]


def one_of(*words: str) -> Callable[[str], list[str]]:
    """A completion from fixed words."""

    def completed(incomplete: str) -> list[str]:
        return [w for w in words if w.startswith(incomplete)]

    return completed


def combinations(incomplete: str) -> list[str]:
    """Kinds of `combine` that begin so."""
    from minipeft.arithmetic import Combination
    from minipeft.settings import choices

    return one_of(*choices(Combination)["kind"].options)(incomplete)


def known(flag: str, word: str, words: Sequence[str]) -> str:
    """The word, if it is one of these. Raises `Bad` with near misses."""
    if word not in words:
        raise Bad(f"{flag} {word}: expected one of {', '.join(words)}{near(word, words)}")
    return word


def many(workers: str | None) -> int | str:
    """What --workers says: a number, or "auto". Raises `Bad` for anything else."""
    from minipeft.train.workers import MOST

    if workers is None or workers == "auto":
        return workers or 1
    if not workers.isdecimal() or not 1 <= int(workers) <= MOST:
        raise Bad(f"--workers {workers}: expected a number from 1 to {MOST}, or auto{near(workers, ['auto'])}")
    return int(workers)


# --- options ----------------------------------------------------------------------------------------------------------

DTYPES = ("float32", "float64", "bfloat16", "nf4", "nf4-double", "fp4", "fp4-double", "int8")


def _use(name: str | None) -> str | None:
    if name is not None:
        from minipeft.engine.backend import use

        use(name)
    return name


def _positive(flag: str, zero: bool) -> Callable[[float | None], float | None]:
    def checked(value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise Bad(f"{flag} {value:g}: expected a number {'not below' if zero else 'above'} 0")
        return value

    return checked


def _dtype(name: str | None) -> str | None:
    return name if name is None else known("--dtype", name, DTYPES)


Method = Annotated[
    str, typer.Argument(help="A method, as `minipeft list` names it.", autocompletion=method_names, callback=named)
]
Methods = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(help="Methods, as `minipeft list` names them.", autocompletion=method_names, callback=named),
]
Base = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--base", metavar="FOLDER", help="A checkpoint folder (default: the decoder of the package)."),
]
Data = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--data", metavar="FILE", help="A CSV file with columns text, label and perhaps split (default: the package's)."
    ),
]
Length = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--length", min=2, help="Tokens that a text may have (default: as 95 % of yours have; 24 of the package's)."
    ),
]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting of a method, r=4; of one of several, METHOD.r=4. May be repeated."
    ),
]
Targets = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--targets", help="Where methods attach, 'q_proj v_proj' (default: each method's own)."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same numbers.")]
LearningRate = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--lr", callback=_positive("--lr", zero=True), help="Learning rate (default: the method's usual one)."
    ),
]
Limit = Annotated[
    float, typer.Option("--limit", callback=_positive("--limit", zero=False), help="Seconds that a case may take.")
]
Jobs = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--jobs", min=1, help="Processes side by side (default: one for each core)."),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Allow nothing: neither float32's rounding for float64's nor a reading other than the usual."
    ),
]
Weight = Annotated[
    Optional[list[float]],  # noqa: UP045
    typer.Option(
        "--weight",
        help="For each adapter in turn: what is computed is W + Σ weight · its change of W. Without weights, `merge` stacks "
        "adapters up in order, and `combine` counts each once.",
    ),
]
Workers = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="N|auto",
        help="Processes that share each batch, the base and the threads (Linux); auto: as many as pay. "
        "`mpiexec -n N minipeft train …` starts them itself.",
        autocompletion=one_of("auto"),
    ),
]
Backend = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--backend", callback=_use, autocompletion=one_of("numpy", "cupy"),
        help="numpy or cupy (default: MINIPEFT_BACKEND, else numpy).",
    ),
]  # fmt: skip
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--dtype", callback=_dtype, autocompletion=one_of(*DTYPES),
        help="float32, float64; bfloat16: matrices of the base are held so, all else is float32; nf4, fp4, "
        "each perhaps with -double, int8: its linears are held in four bits or eight, as bitsandbytes holds them. An adapter belongs to the base in the type that it was trained on. Default: float32.",
    ),
]  # fmt: skip


def _place(flag: str, what: str) -> Any:
    return typer.Option(flag, metavar="PATH", help=f"Write {what} to a file ('-': standard output).")


Json = Annotated[Optional[Path], _place("--json", "everything as JSON")]  # noqa: UP045
Markdown = Annotated[Optional[Path], _place("--markdown", "Markdown")]  # noqa: UP045
Html = Annotated[Optional[Path], _place("--html", "one self-contained page")]  # noqa: UP045
Svg = Annotated[Optional[Path], _place("--svg", "a drawing")]  # noqa: UP045
Png = Annotated[Optional[Path], _place("--png", "the plots")]  # noqa: UP045
Junit = Annotated[Optional[Path], _place("--junit", "JUnit XML")]  # noqa: UP045
