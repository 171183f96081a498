"""Methods with settings: what --set and --targets say."""

from __future__ import annotations

import ast
import dataclasses
import sys
import types
import typing
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minipeft.cli.terminal import plain
from minipeft.errors import Bad, meant, near


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
        only = meant(only, methods) or only
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


def fields_of(cls: Any) -> dict[str, tuple[Any, Any, str]]:
    """{setting: (type, usual value, what it may be in words)} of a method."""
    from minipeft.settings import explained

    hints = typing.get_type_hints(cls)
    usual = cls()
    return {f.name: (hints[f.name], getattr(usual, f.name), explained(f)) for f in dataclasses.fields(cls) if f.init}


def typed(where: str, text: str, field: tuple[Any, Any, str]) -> Any:
    """Words as a value of a setting's type. Raises `Bad`, beginning with `where`."""
    hint, usual, says = field
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
    raise Bad(f"{where}: expected {says}, as in {usual!r}, found {type(value).__name__}")


def settings(cls: Any, arch: Any, given: Sequence[str] | None, targets: str | None = None) -> Any:
    """The method at a size that suits the architecture, with settings given as words."""
    from minipeft.settings import small

    return dataclasses.replace(small(cls, arch), **chosen_settings([cls], given, targets)[cls.name])
