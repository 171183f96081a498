"""The examples in docstrings are right."""

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from minipeft.method import Site
from minipeft.model.arch import Arch
from minipeft.model.tokens import Tokens

PACKAGE = Path(__file__).parents[1] / "minipeft"
FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if re.search(r"^ *>>> ", p.read_text(encoding="utf-8"), re.M)]
KNOWN = dict(np=np, Site=Site, Arch=Arch, Tokens=Tokens)  # what an example uses without importing it


def name_of(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_example_gives_what_it_says(path, capsys):
    module = importlib.import_module(name_of(path))
    done = doctest.testmod(module, extraglobs=KNOWN, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert done.attempted and not done.failed, capsys.readouterr().out
