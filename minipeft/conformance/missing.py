"""What a method of the package still lacks: files, cases, text that was to be filled in, and pages that do not know it."""

from __future__ import annotations

import doctest
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten

import numpy as np

from minipeft.conformance import docstrings
from minipeft.conformance.cases import SHIPPED, ids_in
from minipeft.errors import Bad
from minipeft.interop.peft.registry import has, spec_named
from minipeft.method import Method

PACKAGE = Path(__file__).parents[1]
MARK = "FILL" + " IN"  # what a new method's files say where something is to be written
FUNCTIONS = ("change", "weight", "apply", "forward")
PAGES = {  # what is generated, and how
    "README.md": "minipeft list --markdown -",
    "docs/mutants.md": "python -m minipeft.conformance.mutants",
    "docs/peft.md": "python -m minipeft.interop.peft.page",
}


@dataclass(frozen=True)
class Missing:
    """Something that a method lacks: where, from the top of the project, and what."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def places(name: str, family: str) -> dict[str, str]:
    """The files that a method may have, by what they are, from the top of the project."""
    return {
        "method": f"minipeft/methods/{family}/{name}.py",
        "witness": f"minipeft/conformance/witnesses/{name}.py",
        "mutants": f"minipeft/conformance/mutants/{name}.py",
        "interop": f"minipeft/interop/peft/{name}.py",
        "test": f"tests/methods/{family}/test_{name}.py",
    }


def family_of(cls: type[Method]) -> str:
    """The folder of a method of the package. Raises `Bad` for one from elsewhere."""
    parts = cls.__module__.split(".")
    if parts[:2] != ["minipeft", "methods"]:
        raise Bad(f"{cls.name}: expected a method of the package, found one of {cls.__module__}")
    return parts[2]


def missing(cls: type[Method], top: Path = PACKAGE.parent) -> list[Missing]:
    """All that a method lacks, in the order in which one would write it; nothing for one from elsewhere."""
    if not cls.__module__.startswith("minipeft.methods."):
        return []
    at = places(cls.name, family_of(cls))
    return [*_text(cls, at, top), *_files(cls, at, top), *_generated(cls, top)]


def marked(name: str, family: str, top: Path = PACKAGE.parent) -> Iterator[Missing]:
    """Every line of a method's files that is still to be filled in."""
    for path in places(name, family).values():
        file = top / path
        for n, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else (), 1):
            if MARK in line:
                yield Missing(f"{path}:{n}", shorten(line.strip(' #"'), 80, placeholder=" …"))


def unfilled(cls: type[Method]) -> Iterator[Missing]:
    """Those of them that its cases follow from."""
    if cls.__module__.startswith("minipeft.methods."):
        files = [path for what, path in places(cls.name, family_of(cls)).items() if what not in ("interop", "test")]
        yield from (m for m in marked(cls.name, family_of(cls)) if m.path.rpartition(":")[0] in files)


def _text(cls: type[Method], at: dict[str, str], top: Path) -> Iterator[Missing]:
    yield from marked(cls.name, family_of(cls), top)
    module = sys.modules[cls.__module__]
    try:
        docstrings.read(cls)
    except Bad as why:
        yield Missing(at["method"], str(why))
    tests = [t for t in doctest.DocTestFinder().find(module, module.__name__, extraglobs=_known()) if t.examples]
    if ">>>" not in (module.__doc__ or ""):
        yield Missing(at["method"], "its docstring has no example that can be checked by hand (>>>)")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    for test in tests:
        if runner.run(test, out=lambda text: None, clear_globs=False).failed:
            yield Missing(at["method"], f"the example of {test.name.rpartition('.')[2]} gives something else")


def _known() -> dict[str, object]:
    from minipeft.method import Site
    from minipeft.model.arch import Arch
    from minipeft.model.tokens import Tokens

    return dict(np=np, Site=Site, Arch=Arch, Tokens=Tokens)


def _files(cls: type[Method], at: dict[str, str], top: Path) -> Iterator[Missing]:
    from minipeft.conformance.mutants import said

    own = any(name in vars(cls) for name in FUNCTIONS)  # it computes what no other does
    if not (top / at["witness"]).exists() and own and "witness" not in said(cls.name, "WITHOUT"):
        yield Missing(at["witness"], "is not there: a closed form, written apart from the paper")
    if not (top / at["mutants"]).exists() and own:
        yield Missing(at["mutants"], "is not there: mistakes that its cases must find")
    if (kind := tuner_named(cls.name)) and not has(cls):
        yield Missing(at["interop"], f"is not there, and PEFT has {kind}")
    if (top / "tests").exists() and not (top / at["test"]).exists() and not _tested(cls, top):
        yield Missing(at["test"], "is not there: what this method alone promises")


def _tested(cls: type[Method], top: Path) -> bool:
    """Whether any test of methods speaks of it."""
    paths = (top / "tests/methods").rglob("test_*.py")
    return any(
        w in p.read_text(encoding="utf-8") for p in paths for w in (f"import {cls.__name__}", f", {cls.__name__}")
    )


@cache
def _tuners() -> dict[str, str]:
    """{letters: PEFT's name} of its tuners, as tuners.toml has them."""
    text = (PACKAGE / "interop/peft/tuners.toml").read_text(encoding="utf-8")
    return {_letters(kind): kind for kind, it in tomllib.loads(text).items() if isinstance(it, dict)}


def _letters(name: str) -> str:
    return name.replace("_", "").lower()


def tuner_named(name: str) -> str:
    """PEFT's tuner of a method's name, '' if it has none."""
    return _tuners().get(_letters(name), "")


def _generated(cls: type[Method], top: Path) -> Iterator[Missing]:
    folder = top / SHIPPED.relative_to(PACKAGE.parent)
    if not any(i.startswith(f"{cls.name}.") for i in ids_in(folder)):
        yield Missing(f"{folder.relative_to(top)}/{cls.name}/", f"no cases are recorded: minipeft record {cls.name}")
    for path, how in PAGES.items():
        if (top / path).exists() and _unknown(cls, path, (top / path).read_text(encoding="utf-8")):
            yield Missing(path, f"does not know it as it is now: {how}")


def _unknown(cls: type[Method], path: str, page: str) -> bool:
    """Whether a page that is generated lacks the method."""
    if path == "README.md":
        try:
            return docstrings.markdown([docstrings.facts(cls)]).splitlines()[-1] not in page
        except Bad:
            return True
    if path == "docs/peft.md":
        return spec_named(cls.name) is not None and not re.search(rf"\b{cls.name}\b", page)
    return f"\n| {cls.name} |" not in page
