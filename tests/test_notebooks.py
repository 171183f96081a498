"""The notebooks say what their sources give when they are executed."""

import importlib.util
import re
from decimal import Decimal
from pathlib import Path

import jupytext
import nbformat
import pytest

HERE = Path(__file__).parents[1] / "docs" / "notebooks"
spec = importlib.util.spec_from_file_location("build_notebooks", HERE / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def committed(source):
    return nbformat.read(str(source.with_suffix(".ipynb")), as_version=4)


def outputs(book):
    """The text of every output of every code cell; a picture is a word for it, since its bytes depend on fonts."""
    return [
        [o.text if o.output_type == "stream" else o.data["text/plain"] for o in cell.outputs]
        for cell in book.cells
        if cell.cell_type == "code"
    ]


def alike(a, b):
    """The same words and whole numbers; others may differ by one in the last digit, since processors add in other orders."""

    def near(x, y):
        unit = Decimal((0, (1,), Decimal(x).as_tuple().exponent))
        return x == y or ("." in x and "." in y and abs(Decimal(x) - Decimal(y)) <= unit)

    return NUMBER.split(a) == NUMBER.split(b) and all(map(near, NUMBER.findall(a), NUMBER.findall(b)))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("loss 0.230", "loss 0.231", True),
        ("loss 0.230", "loss 0.232", False),
        ("loss 0.230", "lost 0.230", False),
        ("12 of 12", "11 of 12", False),
        ("-0.0", "0.0", True),
        ("2.31e+15", "2.32e+15", True),
        ("2.31e+15", "2.31e+14", False),
    ],
)
def test_outputs_are_compared_to_their_last_digit(a, b, same):
    assert alike(a, b) is same


def test_they_are_numbered_without_gaps():
    assert [int(s.stem[:2]) for s in build.SOURCES] == list(range(1, 7))


@pytest.mark.parametrize("source", build.SOURCES, ids=lambda s: s.stem)
def test_its_cells_are_those_of_its_source(source):
    """And it says nothing false, on lines that fit a page, and is small."""
    book, path = committed(source), source.with_suffix(".ipynb")
    cells = [(c.cell_type, c.source) for c in jupytext.read(source, fmt="py:percent").cells]
    assert cells == [(c.cell_type, c.source) for c in book.cells], (
        f"run python docs/notebooks/build.py {source.stem[:2]}"
    )
    assert path.stat().st_size < 300_000
    assert not re.search(r"\w *: +False\b", str(outputs(book)))
    lines = [line for cell in outputs(book) for text in cell for line in text.splitlines()]
    assert max(map(len, lines)) <= 100
    assert all(o.get("name") != "stderr" for c in book.cells for o in c.get("outputs", ()))


@pytest.mark.wide  # six to twelve seconds each
@pytest.mark.parametrize("source", build.SOURCES, ids=lambda s: s.stem)
def test_it_gives_what_it_shows(source):
    shown, found = outputs(committed(source)), outputs(build.built(source))
    assert [len(cell) for cell in shown] == [len(cell) for cell in found]
    for cell, again in zip(shown, found):
        for a, b in zip(cell, again):
            assert alike(a, b), f"shown:\n{a}\nfound:\n{b}"
