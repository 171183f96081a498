"""The files of a new method, derived from those of one that is there; what must be filled in is marked.

What a file says of the model method stands until it is replaced, so that the new one runs from the first minute.
"""

from __future__ import annotations

import ast
import inspect
import keyword
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipeft.checkpoints.files import write_bytes
from minipeft.conformance import docstrings
from minipeft.conformance.missing import MARK, PACKAGE, family_of, places, tuner_named
from minipeft.errors import Bad, meant
from minipeft.interop.peft.registry import spec_named
from minipeft.method import METHODS, Method, method_class

WITNESS = '''"""{cls}: {mark}: the equations in words. What follows is the closed form of {like}: write it anew from the paper."""
'''
MUTANTS = '''"""Errors of {cls}. {mark}: what only {cls} can be got wrong by. {imported}"""

from __future__ import annotations
'''
TEST = '''"""{mark}: what {cls} alone promises, a test each; its example, and all laws, are tested anyway."""
'''


def new(name: str, like: str, top: Path = PACKAGE.parent) -> list[Path]:
    """Write the files of a new method and return them: all or none. Raises `Bad` for a name that cannot be, or is taken."""
    made = {top / path: text for path, text in files(name, method_class(like), top).items()}
    written: list[Path] = []
    try:
        for path, text in made.items():
            write_bytes(path, text.encode())
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def files(name: str, like: type[Method], top: Path = PACKAGE.parent) -> dict[str, str]:
    """{path from the top of the project: text} of a new method's files. Raises `Bad` as `new` does."""
    family, cls = family_of(like), "".join(word.capitalize() for word in name.split("_"))
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise Bad(f"{name}: expected a name of small letters, digits and single underscores, as in {like.name}")
    taken = METHODS | {c.__name__: c for c in METHODS.values()}
    if (other := meant(name, taken) or meant(cls, taken)) is not None:
        raise Bad(f"{name}: there is a method {taken[other].name}, in {taken[other].__module__.replace('.', '/')}.py")
    at = places(name, family)
    for path in at.values():
        if (top / path).exists():
            raise Bad(f"{name}: {path} is there already")
    source = {what: top / path for what, path in places(like.name, family).items()}
    told = dict(cls=cls, like=like.name, mark=MARK)
    made = {"method": _method(name, cls, like)}
    if source["witness"].exists():
        made["witness"] = _headed(source["witness"].read_text(encoding="utf-8"), WITNESS.format(**told))
    made["mutants"] = _mutants(like, told)
    if spec_named(like.name):
        made["interop"] = _interop(name, like, source["interop"].read_text(encoding="utf-8"), told)
    if (top / "tests").exists():
        made["test"] = TEST.format(**told)
    return {at[what]: text for what, text in made.items()}


def _headed(text: str, head: str) -> str:
    """A file with another docstring."""
    first = ast.parse(text).body[0]
    return head + "".join(text.splitlines(keepends=True)[first.end_lineno or 0 :])


def _method(name: str, cls: str, like: type[Method]) -> str:
    """The model's file under another name: its declarations and its code, its docstring marked heading by heading."""
    text = Path(inspect.getfile(like)).read_text(encoding="utf-8")
    code = _headed(text, "").strip("\n")
    code = re.sub(rf"\b{like.__name__}\b", cls, code)
    (tree,) = (n for n in ast.parse(code).body if isinstance(n, ast.ClassDef) and n.name == cls)
    lines, start = code.splitlines(), tree.lineno - 1
    first = min([start, *(d.lineno - 1 for d in tree.decorator_list)])
    body = tree.body[0]
    named = next((n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "name"), None)
    if named is not None:
        lines[named.lineno - 1] = f'    name = "{name}"'
    if isinstance(body, ast.Expr) and isinstance(body.value, ast.Constant):
        said = [f'    """{MARK}: what it is, in a line."""'] + ([] if named else ["", f'    name = "{name}"'])
        lines[body.lineno - 1 : body.end_lineno] = said
    elif named is None:
        lines[body.lineno - 1 : body.lineno - 1] = [f'    name = "{name}"']
    lines[first:first] = [f"# {MARK}: settings, arrays and equation are those of {like.name}: change what differs."]
    return _docstring(cls, like) + "\n" + "\n".join(lines) + "\n"


def _docstring(cls: str, like: type[Method]) -> str:
    page = docstrings.read(like)
    text = sys.modules[like.__module__].__doc__ or ""
    example = re.sub(rf"\b{like.__name__}\b", cls, text[text.index(">>>") :]).rstrip() if ">>>" in text else ""
    said = {k: f"{MARK}, of {like.name}: {text}" for k, text in page.sections.items()}
    said["Merges"] = f"{page.sections['Merges']} {MARK}, if not."  # whose first word lists show
    width = dict(width=120, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)
    sections = "\n".join(textwrap.fill(f"{head:<8} {text}", **width) for head, text in said.items())  # type: ignore[arg-type]
    head = f"{cls}: {MARK}: the title. {MARK}: authors year, https://example.org"
    parts = [head, f"{page.equations}\n\n({MARK}: these are the equations of {like.name}.)", sections]
    parts += [f"({MARK}: an example by hand.)\n\n{example}"] if example else []
    quotes = 'r"""' if "\\" in text else '"""'
    return quotes + "\n\n".join(parts) + '\n"""\n'


def _mutants(like: type[Method], told: Mapping[str, str]) -> str:
    """The model's mistakes and cases, for a beginning: those that concern it alone, by import."""
    from minipeft.conformance.mutants import planted

    module = f"minipeft.conformance.mutants.{like.name}"
    found: list[str] = []
    if (PACKAGE / f"conformance/mutants/{like.name}.py").exists():
        __import__(module)
        it: Any = sys.modules[module]
        own = (c for c in planted(it) if c.planted[2] is None and c.__module__ == module)  # type: ignore[attr-defined]
        found = sorted([*(w for w in ("ALIKE", "CASES", "SURVIVES") if hasattr(it, w)), *(c.__name__ for c in own)])
    said = f"What is imported are those of {like.name}." if found else ""
    head = MUTANTS.format(imported=said, **told).replace(' """', '"""')
    if not found:
        return head.replace("\nfrom __future__ import annotations\n", "").rstrip() + "\n"
    line = f"from {module} import {', '.join(found)}  # noqa: F401\n"
    if len(line) > 120:
        line = f"from {module} import (  # noqa: F401\n" + "".join(f"    {w},\n" for w in found) + ")\n"
    return f"{head}\n{line}"


def _interop(name: str, like: type[Method], text: str, told: Mapping[str, str]) -> str:
    """The model's file for PEFT under the name of a tuner of its own, so that no file of the model's is read by it."""
    kind = tuner_named(name)
    there = "" if kind else " PEFT has no tuner of this name: write what it is named, or delete this file."
    head = f'"""{told["cls"]} in PEFT. {MARK}: keys, fields and settings; these are of {like.name}.{there}"""\n'
    spec: Any = spec_named(like.name)
    kind = kind or name.upper()
    if f'Spec(\n    "{spec.peft_type}",' in text:
        return _headed(text, head).replace(f'Spec(\n    "{spec.peft_type}",', f'Spec(\n    "{kind}",')
    return f"""{head}
from __future__ import annotations

import dataclasses

from minipeft.interop.peft.{like.name} import SPEC as LIKE

SPEC = dataclasses.replace(LIKE, peft_type="{kind}", claims=None, trials=())
"""
