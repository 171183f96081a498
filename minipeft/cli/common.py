"""What the commands share: options that mean the same everywhere, where results go, models and adapters from folders."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from minipeft.cli.terminal import plain, terminal
from minipeft.errors import Bad, near

# --- words that complete ----------------------------------------------------------------------------------------------


def method_names(incomplete: str) -> list[str]:
    """Methods that begin so."""
    from minipeft.method import METHODS, load_methods

    load_methods()
    return [n for n in sorted(METHODS) if n.startswith(incomplete)]


def one_of(*words: str) -> Callable[[str], list[str]]:
    """A completion from fixed words."""

    def completed(incomplete: str) -> list[str]:
        return [w for w in words if w.startswith(incomplete)]

    return completed


def known(flag: str, word: str, words: Sequence[str]) -> str:
    """The word, if it is one of these. Raises `Bad` with near misses."""
    if word not in words:
        raise Bad(f"{flag} {word}: expected one of {', '.join(words)}{near(word, words)}")
    return word


# --- options that mean the same everywhere ----------------------------------------------------------------------------

DTYPES = ("float32", "float64", "bfloat16", "nf4", "nf4-double")


def _use(name: str | None) -> str | None:
    if name is not None:
        from minipeft.engine.backend import use

        use(name)
    return name


def cores() -> int:
    """How many processes work side by side when nobody says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive(flag: str, zero: bool) -> Callable[[float | None], float | None]:
    def checked(value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise Bad(f"{flag} {value:g}: expected a number {'not below' if zero else 'above'} 0")
        return value

    return checked


def _dtype(name: str | None) -> str | None:
    return name if name is None else known("--dtype", name, DTYPES)


Method = Annotated[str, typer.Argument(help="A method, as `minipeft list` names it.", autocompletion=method_names)]
Methods = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(help="Methods, as `minipeft list` names them.", autocompletion=method_names),
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
        "--set", metavar="KEY=VALUE", help="A setting of a method, r=4; of one of several, lora.r=4. May be repeated."
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
        help="float32, float64; bfloat16: matrices of the base are held so, all else is float32; nf4, nf4-double: its "
        "linears are held in four bits, as bitsandbytes holds them. An adapter belongs to the base in the type that it was trained on. Default: float32.",
    ),
]  # fmt: skip


def _place(flag: str, what: str) -> Any:
    return typer.Option(flag, metavar="PATH", help=f"Write {what} to a file ('-': standard output).")


Json = Annotated[Optional[Path], _place("--json", "everything as JSON")]  # noqa: UP045
Markdown = Annotated[Optional[Path], _place("--markdown", "Markdown")]  # noqa: UP045
Html = Annotated[Optional[Path], _place("--html", "one self-contained page")]  # noqa: UP045
Png = Annotated[Optional[Path], _place("--png", "the plots")]  # noqa: UP045
Junit = Annotated[Optional[Path], _place("--junit", "JUnit XML")]  # noqa: UP045


def base_folder(base: Path | None) -> Path:
    """The folder that --base names, by default the decoder of the package."""
    from minipeft.data import BASE

    return BASE if base is None else base


def note(lines: Iterable[str]) -> None:
    """Lines on standard error that one should read: what was cut, left out, or looks odd."""
    for line in lines:
        print(plain(line), file=sys.stderr, flush=True)


# --- where results go -------------------------------------------------------------------------------------------------


class Outputs:
    """Where results go: files, and at most one on standard output, which then holds nothing else.

    `Outputs(json=json_, html=html)` is made before the work: a place that cannot be written is found then. Raises `Bad`.
    """

    def __init__(self, **paths: Path | None) -> None:
        self.paths = {name: path for name, path in paths.items() if path is not None}
        seen: dict[Path, str] = {}
        for name, path in self.paths.items():
            where = path if str(path) == "-" else path.resolve()
            if where in seen:
                raise Bad(f"--{seen[where]} and --{name} {path}: expected two places, found one")
            seen[where] = name
            if str(path) != "-":
                writable(f"--{name}", path)

    @property
    def spoken(self) -> bool:
        """Whether standard output is for people."""
        return not any(str(p) == "-" for p in self.paths.values())

    def show(self, *shown: Any) -> None:
        """For people: tables of rich, and text (as it is: its brackets are no styles)."""
        if self.spoken:
            console = terminal()
            for x in shown:
                if isinstance(x, str):
                    print("\n".join(plain(line) for line in x.split("\n")), flush=True)
                else:
                    console.print(x)

    def write(self, name: str, made: Callable[[], str | bytes]) -> None:
        """What `made` gives, to where --NAME says; not made if nobody asked."""
        from minipeft.checkpoints.files import write_bytes

        if (path := self.paths.get(name)) is None:
            return
        made_ = made()
        data = made_.encode() if isinstance(made_, str) else made_
        if str(path) != "-":
            write_bytes(path, data)
        elif hasattr(sys.stdout, "buffer"):
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            sys.stdout.write(data.decode())

    def json(self, value: Any) -> None:
        """A value as JSON, to where --json says. What JSON has no number for is a word: "nan", "inf"."""
        self.write("json", lambda: json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def writable(flag: str, path: Path) -> None:
    """Raises `Bad` if no file can be written there."""
    if path.is_dir():
        raise Bad(f"{flag} {path}: expected a file, found a folder")
    there = next(p for p in (path.absolute().parent, *path.absolute().parent.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Bad(f"{flag} {path}: cannot be written: {there} is {'read-only' if there.is_dir() else 'no folder'}")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# --- methods with settings --------------------------------------------------------------------------------------------


def chosen_settings(
    classes: Iterable[Any], given: Sequence[str] | None = (), targets: str | None = None
) -> dict[str, dict[str, Any]]:
    """{method: {setting: value}}: the words of --set, and --targets, read as the fields' types.

    KEY=VALUE is for every method that has the setting, METHOD.KEY=VALUE for one. Raises `Bad` for a setting that none of
    them has, for one given twice, and for values that are no such thing or that the method refuses.
    """
    methods = {cls.name: cls for cls in classes}
    out: dict[str, dict[str, Any]] = {name: {} for name in methods}
    words = [("--set", word, word) for word in given or ()]
    words += [("--targets", targets, f"targets={targets}")] if targets is not None else []
    for flag, said, word in words:
        key, eq, text = word.partition("=")
        only, dot, field = key.rpartition(".")
        if not eq or not key:
            raise Bad(f"--set {word}: expected KEY=VALUE, as in r=4")
        if dot and only not in methods:
            raise Bad(f"--set {word}: {only} is none of the methods here{near(only, methods)}: {', '.join(methods)}")
        about = [methods[only]] if dot else list(methods.values())
        having = [cls for cls in about if field in fields_of(cls)]
        if not having:
            every = list(dict.fromkeys(k for cls in about for k in fields_of(cls)))
            whose = about[0].name if len(about) == 1 else "none of these methods"
            has = "has no setting" if len(about) == 1 else "has a setting"
            rest = f"; it has {', '.join(every)}" if len(about) == 1 else ""
            raise Bad(f"--set {word}: {whose} {has} {field!r}{near(field, every)}{rest}")
        for cls in having:
            if field in out[cls.name]:
                raise Bad(f"{flag} {said}: {field} of {cls.name} is given twice")
            out[cls.name][field] = typed(f"{flag} {said}", text, fields_of(cls)[field])
    for name, values in out.items():
        dataclasses.replace(methods[name](), **values)  # what the method itself refuses, before any work
    return out


def settings_not_for(chosen: Mapping[str, Mapping[str, Any]], given: Sequence[str] | None) -> None:
    """Says on standard error which of several methods have no such setting: they are as usual."""
    for word in given or ():
        key = word.partition("=")[0]
        without = [name for name, values in chosen.items() if key not in values]
        if "." not in key and without:
            print(plain(f"minipeft: {word} is no setting of {', '.join(without)}"), file=sys.stderr)


def fields_of(cls: Any) -> dict[str, tuple[Any, Any]]:
    """{setting: (type, usual value)} of a method."""
    hints = typing.get_type_hints(cls)
    usual = cls()
    return {f.name: (hints[f.name], getattr(usual, f.name)) for f in dataclasses.fields(cls) if f.init}


def typed(where: str, text: str, field: tuple[Any, Any]) -> Any:
    """Words as a value of a setting's type. Raises `Bad`, beginning with `where`."""
    hint, usual = field
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(hint)) if union else {hint}
    try:
        with warnings.catch_warnings(action="ignore"):  # of Python's parser, about 1if
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    quoted = text[:1] in ("'", '"') or text[-1:] in ("'", '"')
    if quoted and value is text:
        raise Bad(f"{where}: a quote is not closed")
    if str in kinds:
        return value if quoted and isinstance(value, str) else text
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if type(None) in kinds and text.lower() == "none":
        return None
    if float in kinds and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return value if int in kinds and type(value) is int else float(value)
    if type(value) in kinds - {float, tuple, list}:
        return value
    for kind in kinds:
        if typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is int:
            items = value if isinstance(value, tuple | list) else (value,)
            if all(type(i) is int for i in items):
                return tuple(items)
    names = " or ".join(sorted(getattr(k, "__name__", str(k)) if k is not type(None) else "None" for k in kinds))
    raise Bad(f"{where}: expected {names} like {usual!r}, found {type(value).__name__}")


def settings(cls: Any, arch: Any, given: Sequence[str] | None, targets: str | None = None) -> Any:
    """The method at a size that suits the architecture, with settings given as words."""
    return dataclasses.replace(cls.sized(arch), **chosen_settings([cls], given, targets)[cls.name])


# --- adapters ---------------------------------------------------------------------------------------------------------


def folders_of(folders: Sequence[Path], base: Path | None) -> tuple[Path, list[Path], Path]:
    """Base, adapters and where to write, from the folders of a command line; the base is an option, or stands first.

    Raises `Bad` if there are too few.
    """
    first, *rest = folders
    if (
        base is None
        and len(rest) > 1
        and not any((first / f).exists() for f in ("adapter.json", "adapter_config.json"))
    ):
        base, folders = first, rest
    if len(folders) < 2:
        raise Bad(f"{folders[0]}: expected an adapter folder and a folder to write, found one folder")
    return base_folder(base), list(folders[:-1]), folders[-1]


def refuse_place(out: Path, kind: str, *read: Path) -> None:
    """Raises `Bad` if an adapter of this kind, "minipeft" or "PEFT", cannot have `out` as its folder.

    It cannot be one that is `read`, a checkpoint, which transformers would load with the adapter, or hold an adapter of
    the other kind, since a folder is read as one or the other.
    """
    from minipeft.checkpoints.files import refuse_read

    refuse_read(out, *read)
    other = "adapter_config.json" if kind == "minipeft" else "adapter.json"
    for name, what in (("config.json", "a checkpoint"), (other, "an adapter of the other kind")):
        if (out / name).exists():
            raise Bad(f"{out}: holds {name}, so it is {what}; give another folder for an adapter of {kind}")


def opened(base: Path, folders: Sequence[Path], dtype: str | None = None) -> Any:
    """A base with adapter folders of either kind, in their order; the base is held as they were trained, unless `dtype` says how.

    Several adapters are called after their folders.
    """
    from minipeft.checkpoints import load
    from minipeft.checkpoints.files import existing
    from minipeft.checkpoints.native import trained_in

    existing(base, "folder")
    ours = [f for f in folders if (existing(f, "folder") / "adapter.json").exists()]
    model = load(base, dtype or next(filter(None, map(trained_in, ours)), None))
    for folder, name in zip(folders, _called(folders)):
        model = attached(model, folder, name)
    return model


def _called(folders: Sequence[Path]) -> list[str | None]:
    import re

    if len(folders) == 1:
        return [None]
    names = [re.sub(r"[^\w.-]+", "_", f.resolve().name) for f in folders]
    return [n if names.count(n) == 1 else f"{n}_{i}" for i, n in enumerate(names, 1)]


def attached(model: Any, folder: Path, name: str | None = None) -> Any:
    """The model with an adapter folder of either kind."""
    from minipeft.checkpoints.files import existing
    from minipeft.checkpoints.native import load_adapter
    from minipeft.interop.peft.reading import load_peft

    existing(folder, "folder")
    if (folder / "adapter.json").exists():
        return load_adapter(model, folder, name=name)
    if (folder / "adapter_config.json").exists():
        return load_peft(model, folder, name or "default")
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    raise Bad(f"{folder}: expected adapter.json (ours) or adapter_config.json (PEFT's), found {shown or 'nothing'}")
