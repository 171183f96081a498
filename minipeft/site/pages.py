"""The pages that are not a method's: those of docs/, the families', the tape, the notebooks; and where links in them lead here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from minipeft import tape
from minipeft.compare import FAMILIES
from minipeft.conformance import docstrings
from minipeft.errors import Bad
from minipeft.method import Method
from minipeft.site import method as one
from minipeft.site.equations import dollars
from minipeft.tape.svg import COLOURS, DARK

ROOT = Path(__file__).parents[2]
PAGES = {  # of docs/, and those made here, by what the navigation calls them
    "Guide": {
        "Guide": "guide.md", "The tape": "tape.md", "Devices": "devices.md", "Scale": "scale.md", "Contributing": "CONTRIBUTING.md",
        "Changes": "CHANGELOG.md",
    },
    "Judging": {
        "The field": "field.md", "Deviations": "deviations.md", "Options of PEFT": "peft.md", "The format of cases": "format.md",
        "Mutants": "mutants.md", "Robustness": "robustness.md",
    },
    "Measured": {"Claims": "claims.md", "Speed": "speed.md", "On a GPU": "gpu.md"},
}  # fmt: skip
WIDE = ("field.md", "mutants.md")  # whose tables want the place of a table of contents
RENAMED = {"field.html": "cells.html"}  # beside field.md's page
NOTEBOOKS = ROOT / "docs" / "notebooks"
EXERCISES = "examples/exercises/README.md"
YARDSTICK = FAMILIES["lowrank"]
Chosen = Mapping[str, type[Method]]


def write(source: Path, chosen: Chosen, tick: Callable[[str], object]) -> None:
    """All of them into a folder that has docs/ already."""
    for path in source.glob("*.md"):
        head = "---\nhide: [toc]\n---\n\n" if path.name in WIDE else ""
        path.write_text(head + linked(path.read_text(encoding="utf-8"), "docs/", chosen), encoding="utf-8")
    for name, to in (("README.md", "index.md"), (EXERCISES, "exercises.md")):
        text = linked((ROOT / name).read_text(encoding="utf-8"), name.rpartition("/")[0], chosen)
        (source / to).write_text(text, encoding="utf-8")
    for name, to in RENAMED.items():
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        (source / to).write_text(re.sub(r'(href="[\w/]+)\.md([#"])', r"\1.html\2", text), encoding="utf-8")
    families = sorted({family_of(c) for c in chosen.values()})
    for family in families:
        (source / "families" / family).mkdir(parents=True)
        (source / "families" / family / "index.md").write_text(_family(family, chosen), encoding="utf-8")
    (source / "families" / "index.md").write_text(_families(families, chosen), encoding="utf-8")
    _tape(source)
    tick("families and the tape")
    if with_notebooks():
        _notebooks(source / "notebooks", chosen)
        tick("notebooks")


def family_of(cls: type[Method]) -> str:
    """The folder of a method's file."""
    return cls.__module__.split(".")[-2]


def title(family: str) -> str:
    """What a family is called, for it begins with that: `Low-rank changes of weights.`"""
    return _words(family)[0].partition(":")[0].rstrip(".")


def _words(family: str) -> tuple[str, str]:
    said = import_module(f"minipeft.methods.{family}").__doc__ or ""
    first, _, rest = said.strip().partition("\n\n")
    return " ".join(first.split()), rest


def _family(family: str, chosen: Chosen) -> str:
    """What the methods of a family do and when one would take one, from the family's own words, and a table of them."""
    rows = []
    for name, cls in chosen.items():
        if family_of(cls) == family:
            about = docstrings.facts(cls)
            rows.append((f"[{name}](../../methods/{name}.md)", about["title"], about["size"], about["merges"]))
    return f"# {title(family)}\n\n{_words(family)[1]}\n\n{one.table(('method', 'paper', 'trains', 'merges'), rows)}\n"


def _families(families: list[str], chosen: Chosen) -> str:
    """All of them, each with its words and its methods."""
    blocks = ["# Methods", "Family by family: what they change, and when one would take one."]
    for family in families:
        of = ", ".join(f"[{n}](../methods/{n}.md)" for n, c in chosen.items() if family_of(c) == family)
        blocks += [f"## [{title(family)}]({family}/index.md)", _words(family)[1], of]
    return "\n\n".join(blocks) + "\n"


# --- the tape ---------------------------------------------------------------------------------------------------------


def _tape(source: Path) -> None:
    """The page with a switch between a few methods and a slider for the layers, and what it and the methods' pages need."""
    by_layer = {e.label: tape.by_layer(e.method, label=e.label) for e in tape.USUAL if e.top is None}
    said = (
        f"# The tape\n\n{tape.INTRO} `minipeft tape METHOD` shows any method's; each has its own on its page.\n\n"
        f"{_fragment(tape.choosing(by_layer, tape.side_by_side()))}\n"
    )
    (source / "tape.md").write_text(said, encoding="utf-8")
    # rem is 16 pixels where the rules are from, 20 here; in a condition it is 16 in both
    rules = re.sub(r"(?<!max-width:)(?<![\d.])([\d.]+)rem", lambda m: f"{0.8 * float(m[1]):.3g}rem", tape.RULES)
    style = f".md-typeset .tapes{{{COLOURS};--back:var(--md-default-bg-color);{rules}}}\n[data-md-color-scheme=slate] .md-typeset .tapes{{{DARK};--back:var(--md-default-bg-color)}}\n"
    (source / "assets" / "tape.css").write_text(style, encoding="utf-8")
    (source / "assets" / "tape.js").write_text(
        f"if(document.querySelector('.tapes .pick')){{{tape.SCRIPT}}}\n", encoding="utf-8"
    )


def tape_of(name: str) -> str:
    """HTML of a method's tape; '' where there is none."""
    try:
        return _fragment(tape.panel(tape.example(name)) + tape.legend())
    except Bad:
        return ""


def _fragment(text: str) -> str:
    return f'<div class="tapes">{text}</div>'


# --- notebooks, links -------------------------------------------------------------------------------------------------


def with_notebooks() -> bool:
    """Whether the notebooks are there, and what turns them into pages."""
    return NOTEBOOKS.exists() and find_spec("nbconvert") is not None


def _notebooks(target: Path, chosen: Chosen) -> None:
    import nbformat
    from nbconvert import MarkdownExporter

    target.mkdir()
    index = linked((NOTEBOOKS / "README.md").read_text(encoding="utf-8"), "docs/notebooks", chosen, "../")
    (target / "index.md").write_text(index, encoding="utf-8")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        for cell in book.cells:
            cell.source = dollars(cell.source) if cell.cell_type == "markdown" else cell.source
        text, more = MarkdownExporter().from_notebook_node(book)
        folder = f"{path.stem}_files"
        for name, data in more["outputs"].items():
            (target / folder).mkdir(exist_ok=True)
            (target / folder / name).write_bytes(data)
            text = text.replace(f"({name})", f"({folder}/{name})")
        (target / f"{path.stem}.md").write_text(linked(text, "docs/notebooks", chosen, "../"), encoding="utf-8")


def linked(text: str, folder: str, chosen: Chosen, up: str = "") -> str:
    """A text of this folder of the sources, its links as the site has their targets: pages, pictures; else plain words.

    `up` leads from its page to the top of the site.
    """

    def to(m: re.Match[str]) -> str:
        mark, label, target = m[1], m[2], m[3]
        path, hash_, anchor = target.partition("#")
        if path.startswith(("http", "mailto")) or not path:
            return m[0]
        there = (ROOT / folder / path).resolve()
        if not there.exists():  # no link, or one that mkdocs will refuse
            return m[0]
        page = _page_of(there, chosen)
        return f"{mark}[{label}]({up}{page}{hash_}{anchor})" if page else label

    return re.sub(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)", to, _inner(text, folder, up))


def _inner(text: str, folder: str, up: str) -> str:
    """Pictures within the labels of links, which one expression does not reach."""

    def to(m: re.Match[str]) -> str:
        path = (ROOT / folder / m[2]).resolve()
        return f"[![{m[1]}]({up}{path.relative_to(ROOT / 'docs').as_posix()})]" if path.is_file() else m[0]

    return re.sub(r"\[!\[([^\]]*)\]\(([^)\s]+)\)\]", to, text)


def _page_of(path: Path, chosen: Chosen) -> str:
    """Where a file of the sources is in the site; '' if it is not."""
    if not path.is_relative_to(ROOT):
        return ""
    inside = path.relative_to(ROOT).as_posix()
    if inside in ("README.md", EXERCISES):
        return "index.md" if inside == "README.md" else "exercises.md"
    if found := re.fullmatch(r"minipeft/methods/(\w+/\w+)\.py", inside):
        ends = f"methods.{found[1].replace('/', '.')}"
        return next((f"methods/{n}.md" for n, c in chosen.items() if c.__module__.endswith(ends)), "")
    name = inside.removeprefix("docs/")
    if not inside.startswith("docs/") or path.is_dir():
        return ""
    if name.startswith("notebooks/"):
        book = "index" if path.name == "README.md" else path.stem
        there = with_notebooks() and (book == "index" or path.with_suffix(".ipynb").exists())
        return f"notebooks/{book}.md" if there else ""
    return RENAMED.get(name, name)
