"""All pages in a folder, and by mkdocs the site of them, which works from a folder without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minipeft import __version__
from minipeft.compare import FAMILIES
from minipeft.conformance import docstrings
from minipeft.errors import Bad
from minipeft.method import METHODS, Method, load_methods
from minipeft.shown import shortly
from minipeft.site import method as one
from minipeft.site.trained import Seen, shown

ROOT = Path(__file__).parents[2]
ASSETS = Path(__file__).parent / "assets"
PAGES = {  # of docs/, by what the navigation calls them
    "Guide": "guide.md", "The field": "field.md", "Deviations": "deviations.md", "Options of PEFT": "peft.md",
    "The format of cases": "format.md", "Mutants": "mutants.md", "Speed": "speed.md", "Devices": "devices.md", "Scale": "scale.md", "On a GPU": "gpu.md",
    "Robustness": "robustness.md", "Claims": "claims.md",
}  # fmt: skip
NOTEBOOKS = ROOT / "docs" / "notebooks"
YARDSTICK = FAMILIES["lowrank"]


def pages_of(names: Sequence[str] = ()) -> int:
    """How often `build` says what it does."""
    return len(names or METHODS) + 1 + _with_notebooks()


def build(out: Path, names: Sequence[str] = (), tick: Callable[[str], object] = lambda what: None) -> int:
    """The site in the folder `out`, of all methods or some; how many pages it has.

    Raises `Bad` where mkdocs is not installed, the sources' docs/ are not there, or a link leads nowhere; `out` is written whole or not at all.
    """
    if find_spec("material") is None or find_spec("mkdocs") is None:
        raise Bad("site: expected mkdocs-material, pip install mkdocs-material latex2mathml nbconvert, found none")
    if not (ROOT / "docs" / "guide.md").exists():
        raise Bad(f"site: expected a checkout with docs/, found none beside {ROOT}")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "assets" / "site.css").exists())):
        raise Bad(
            f"site: {out} is there and is no site: expected a folder that is not there, is empty, or holds a site"
        )
    load_methods()
    chosen = {n: METHODS[n] for n in (names or sorted(METHODS)) if METHODS[n].__module__.startswith("minipeft.")}
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent) as folder:
        source, made = Path(folder) / "docs", Path(folder) / "site"
        _write(source, chosen, tick)
        (Path(folder) / "mkdocs.yml").write_text(_config(chosen, source), encoding="utf-8")
        said = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", f"{folder}/mkdocs.yml", "-d", str(made)],
            capture_output=True, text=True,
        )  # fmt: skip
        tick("mkdocs")
        if said.returncode:
            raise Bad(f"site: mkdocs: {shortly(said.stderr or said.stdout)}")
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)
    return sum(1 for _ in out.rglob("*.html"))


def _write(source: Path, chosen: dict[str, type[Method]], tick: Callable[[str], object]) -> None:
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("*.ipynb", "notebooks"))
    shutil.copytree(ASSETS, source / "assets")
    for path in source.glob("*.md"):
        path.write_text(_linked(path.read_text(encoding="utf-8"), chosen, ""), encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    (source / "index.md").write_text(_linked(readme, chosen, ""), encoding="utf-8")
    (source / "methods").mkdir()
    first = _looked_at(METHODS[YARDSTICK])
    for name, cls in chosen.items():
        seen = first if name == YARDSTICK else _looked_at(cls)
        (source / "tapes").mkdir(exist_ok=True)
        if tape := tape_of(name):
            (source / "tapes" / f"{name}.svg").write_text(tape, encoding="utf-8")
        text = one.page(cls, seen, YARDSTICK, _cost(seen, first), f"../tapes/{name}.svg" if tape else "")
        (source / "methods" / f"{name}.md").write_text(text, encoding="utf-8")
        tick(name)
    (source / "families").mkdir()
    for family in sorted({_family(c) for c in chosen.values()}):
        (source / "families" / f"{family}.md").write_text(_family_page(family, chosen), encoding="utf-8")
    if _with_notebooks():
        _notebooks(source / "notebooks")
        tick("notebooks")


def _looked_at(cls: type[Method]) -> Seen | str:
    try:
        return shown(cls)
    except Bad as why:
        return str(why)


def _cost(seen: Seen | str, first: Seen | str) -> dict[str, float] | None:
    if isinstance(seen, str) or isinstance(first, str):
        return None
    return {
        "processor time": seen.seconds / first.seconds,
        "most memory at once": seen.peak / first.peak,
        "numbers trained": seen.trained / first.trained,
    }


def tape_of(name: str) -> str:
    """The picture of a method's tape; '' where there is none."""
    from minipeft.tape import example, svg

    try:
        return svg(example(name))
    except Bad:
        return ""


def _family(cls: type[Method]) -> str:
    return cls.__module__.split(".")[-2]


def _family_page(family: str, chosen: dict[str, type[Method]]) -> str:
    """What the methods of a family do and when one would take one, from the family's own words, and a table of them."""
    said = import_module(f"minipeft.methods.{family}").__doc__ or ""
    first, _, rest = said.strip().partition("\n\n")
    rows = []
    for name, cls in chosen.items():
        if _family(cls) == family:
            about = docstrings.facts(cls)
            rows.append((f"[{name}](../methods/{name}.md)", about["title"], about["size"], about["merges"]))
    table = one.table(("method", "paper", "trains", "merges"), rows)
    return f"# {family.capitalize()}\n\n**{first}**\n\n{rest}\n\n{table}\n"


def _linked(text: str, chosen: dict[str, type[Method]], up: str) -> str:
    """Links to files that are no pages: to a method's page where it is a method's file, else plain words."""

    def to(m: re.Match[str]) -> str:
        label, target = m[1], m[2]
        path = target.partition("#")[0]
        if path.startswith(("http", "mailto")) or not path:
            return m[0]
        if found := re.search(r"minipeft/methods/\w+/(\w+)\.py$", path):
            module = f"methods.{Path(path).parent.name}.{found[1]}"
            names = [n for n, c in chosen.items() if c.__module__.endswith(module)]
            return f"[{label}]({up}methods/{names[0]}.md)" if names else label
        return (
            m[0]
            if ((ROOT / "docs" / path).exists() and not path.startswith("..") and path != "CHANGELOG.md")
            or path in PAGES.values()
            else label
        )

    return re.sub(r"(?<!!)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)", to, text)


def _with_notebooks() -> bool:
    return NOTEBOOKS.exists() and find_spec("nbconvert") is not None


def _notebooks(target: Path) -> None:
    from nbconvert import MarkdownExporter

    target.mkdir()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, more = MarkdownExporter().from_filename(str(path))
        folder = f"{path.stem}_files"
        for name, data in more["outputs"].items():
            (target / folder).mkdir(exist_ok=True)
            (target / folder / name).write_bytes(data)
            text = text.replace(f"({name})", f"({folder}/{name})")
        (target / f"{path.stem}.md").write_text(text, encoding="utf-8")


def _config(chosen: dict[str, type[Method]], source: Path) -> str:
    """mkdocs.yml. YAML reads JSON."""
    import json

    families: dict[str, list[Any]] = {}
    for name, cls in chosen.items():
        families.setdefault(_family(cls), []).append({name: f"methods/{name}.md"})
    books = [f"notebooks/{p.name}" for p in sorted((source / "notebooks").glob("*.md"))]
    nav: list[Any] = [{"Home": "index.md"}]
    nav += [{"Methods": [{f.capitalize(): [f"families/{f}.md", *pages]} for f, pages in sorted(families.items())]}]
    nav += [{"Notebooks": books}] if books else []
    nav += [{title: page} for title, page in PAGES.items() if (source / page).exists()]
    scheme = dict(primary="indigo", accent="indigo")
    palette = [
        dict(
            media="(prefers-color-scheme: light)",
            scheme="default",
            toggle=dict(icon="material/weather-night", name="Dark"),
            **scheme,
        ),
        dict(
            media="(prefers-color-scheme: dark)",
            scheme="slate",
            toggle=dict(icon="material/weather-sunny", name="Light"),
            **scheme,
        ),
    ]
    return json.dumps(
        dict(
            site_name=f"minipeft {__version__}", docs_dir=str(source), use_directory_urls=False, nav=nav,
            theme=dict(name="material", font=False, palette=palette, features=["navigation.indexes", "navigation.tabs", "navigation.top", "toc.follow"]),
            plugins=["search", "offline"],
            markdown_extensions=["admonition", "attr_list", "md_in_html", "tables", "toc", "pymdownx.highlight", "pymdownx.superfences"],
            extra_css=["assets/site.css"], extra_javascript=["assets/effects.js"],
            validation=dict(links=dict(anchors="warn", unrecognized_links="warn"), omitted_files="ignore"),
        ),
        indent=1,
    )  # fmt: skip
