"""All pages in a folder, and by mkdocs the site of them, which works from a folder without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minipeft import __version__
from minipeft.errors import Bad
from minipeft.method import METHODS, Method, load_methods
from minipeft.processes import cores, deaf_to_interrupts, pool
from minipeft.site import method as one
from minipeft.site import pages
from minipeft.site.pages import PAGES, ROOT, YARDSTICK, family_of
from minipeft.site.trained import Seen, looked_at

ASSETS = Path(__file__).parent / "assets"
SHIM = (
    "https://unpkg.com/iframe-worker/shim"  # what Material loads from the network, so that search works from a folder
)
OWN = "assets/search.js"  # and what does it here
SLUGS = "!!python/object/apply:pymdownx.slugs.slugify {kwds: {case: lower}}"  # anchors as GitHub makes them


def pages_of(names: Sequence[str] = ()) -> int:
    """How often `build` says what it does."""
    return len(names or METHODS) + 2 + pages.with_notebooks()


def build(
    out: Path, names: Sequence[str] = (), tick: Callable[[str], object] = lambda what: None, jobs: int | None = None
) -> int:
    """The site in the folder `out`, of all methods or some, made by `jobs` processes; how many pages it has.

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
        shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("*.ipynb", "notebooks", "*.html"))
        shutil.copytree(ASSETS, source / "assets")
        pages.write(source, chosen, tick)
        _methods(source / "methods", chosen, tick, jobs or cores())
        (Path(folder) / "mkdocs.yml").write_text(_config(chosen, source), encoding="utf-8")
        said = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", f"{folder}/mkdocs.yml", "-d", str(made)],
            capture_output=True, text=True,
        )  # fmt: skip
        tick("mkdocs")
        if said.returncode:
            lines = [line for line in said.stderr.splitlines() if re.match("WARNING|ERROR", line)]
            raise Bad(f"site: mkdocs: {'; '.join(lines) or said.stderr}")
        for page in made.rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            up = "../" * (len(page.relative_to(made).parts) - 1)
            page.write_text(text.replace(SHIM, up + OWN), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)
    return sum(1 for _ in out.rglob("*.html"))


def _methods(folder: Path, chosen: dict[str, type[Method]], tick: Callable[[str], object], jobs: int) -> None:
    """The methods' pages, each trained in one of several processes; the one that the others' cost stands beside comes first."""
    folder.mkdir()
    with pool(min(jobs, len(chosen)), load_methods) as work:
        with deaf_to_interrupts():  # processes start as they get work
            first = work.submit(looked_at, YARDSTICK).result()
            running = {work.submit(_page, name, first): name for name in chosen}
        for done in as_completed(running):
            name = running[done]
            (folder / f"{name}.md").write_text(done.result(), encoding="utf-8")
            tick(name)


def _page(name: str, first: Seen | str) -> str:
    """A method's page; in a process of its own."""
    seen = first if name == YARDSTICK else looked_at(name)
    return one.page(METHODS[name], seen, YARDSTICK, first, pages.tape_of(name))


def _config(chosen: dict[str, type[Method]], source: Path) -> str:
    """mkdocs.yml. YAML reads JSON."""
    families: dict[str, list[Any]] = {}
    for name, cls in chosen.items():
        families.setdefault(family_of(cls), []).append({name: f"methods/{name}.md"})
    books = [
        f"notebooks/{p.name}"
        for p in sorted((source / "notebooks").glob("[i0-9]*.md"), key=lambda p: (p.stem != "index", p.stem))
    ]
    nav: list[Any] = [{"Home": "index.md"}]
    methods = {pages.title(f): [f"families/{f}/index.md", *of] for f, of in families.items()}
    nav += [{"Methods": ["families/index.md", *({t: of} for t, of in sorted(methods.items()))]}]
    nav += [{"Notebooks": [*books, {"Exercises": "exercises.md"}]}]
    nav += [{section: [{title: page} for title, page in of.items()]} for section, of in PAGES.items()]
    config = json.dumps(
        dict(
            site_name=f"minipeft {__version__}", docs_dir=str(source), use_directory_urls=False, nav=nav,
            theme=dict(
                name="material", font=False, palette=list(_palettes()),
                features=["navigation.indexes", "navigation.tabs", "navigation.top", "navigation.footer", "toc.follow"],
            ),
            plugins=["search", "offline"],
            markdown_extensions=["admonition", "attr_list", "md_in_html", "tables", dict(toc=dict(slugify=SLUGS)), "pymdownx.highlight", "pymdownx.superfences"],
            extra_css=["assets/site.css", "assets/tape.css"], extra_javascript=["assets/effects.js", "assets/tape.js"],
            validation=dict(links=dict(anchors="warn", unrecognized_links="warn"), omitted_files="ignore"),
        ),
        indent=1,
    )  # fmt: skip
    return config.replace(f'"{SLUGS}"', SLUGS)


def _palettes() -> Any:
    """As the system has it until the reader says otherwise."""
    kinds = (
        ("", "default", "auto", "Light"),
        (": light", "default", "7", "Dark"),
        (": dark", "slate", "4", "As the system has it"),
    )
    for which, scheme, icon, then in kinds:
        toggle = dict(icon=f"material/brightness-{icon}", name=then)
        yield dict(
            media=f"(prefers-color-scheme{which})", scheme=scheme, toggle=toggle, primary="indigo", accent="indigo"
        )
