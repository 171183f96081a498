"""The site is built of a checkout, without a dead link; what cannot be is refused before anything is written."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from minipeft.errors import Bad
from minipeft.site.build import build, pages_of
from minipeft.site.pictures import caption, svgs
from minipeft.site.trained import Seen


def test_a_folder_that_is_no_site_is_not_touched(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is of the extra `site`")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Bad, match="is no site"):
        build(tmp_path, ["lora"])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_caption_says_rank_and_size():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((9, 7))
    D = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 7))
    said = caption(Seen("a.weight", W, W + D, True))
    assert "of rank 2" in said and f"{np.linalg.norm(D) / np.linalg.norm(W):.2g} of its norm" in said
    assert "grew from 9 to 12 rows: 3 are" in caption(Seen("a", W, np.ones((12, 7)), False))
    assert "does nothing there" in caption(Seen("a", W, W, False))


@pytest.mark.wide
def test_the_same_picture_again():
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    W = np.random.default_rng(0).standard_normal((6, 5))
    one, other = (svgs(Seen("a.weight", W, 2 * W, True)) for _ in range(2))
    assert one == other and len(one) == 4 and all(part.startswith("<svg") for part in one)
    ids = [name for part in one for name in set(re.findall(r'id="(\w+)"', part))]
    assert len(ids) == len(set(ids))  # on one page
    assert len(svgs(Seen("a.weight", W, np.ones((9, 5)), True))) == 3  # what grew has no change
    assert len(svgs(Seen("a.bias", W[:1], 2 * W[:1], True))) == 3  # one row has no directions


class Asked(HTMLParser):
    """What a page asks for as it is shown, its links, and the anchors that it has."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given["id"]} if given.get("id") else set()
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(given["href"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of two methods."""
    pytest.importorskip("material", reason="mkdocs-material is of the extra `site`")
    folder, ticks = tmp_path_factory.mktemp("built") / "site", []
    count = build(folder, ["lora", "prefix_tuning"], ticks.append, jobs=2)
    assert len(ticks) == pages_of(["lora", "prefix_tuning"]) and {"lora", "prefix_tuning"} <= {*ticks}
    assert count == len([*folder.rglob("*.html")]) > 25
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_nothing_is_fetched_and_every_link_leads_somewhere(site):
    pages = {p: Asked(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    del pages[site / "404.html"]  # which only a server shows
    for page, asked in pages.items():
        for address in asked.loads:
            assert not re.match("https?:|//", address), (page, address)
            assert address.startswith("data:") or (page.parent / address.partition("?")[0]).exists(), (page, address)
        for address in asked.links:
            where, _, anchor = address.partition("#")
            if re.match(r"[a-z]+:", address):
                continue
            target = (page.parent / unquote(where)).resolve() if where else page
            assert target.exists(), (page, address)
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].anchors, (page, address)
    text = (site / "methods" / "lora.html").read_text(encoding="utf-8")
    assert "<math" in text and text.count('class="effect"') >= 4 and "here the gradient ends" in text
    assert "$$" not in (site / "notebooks" / "02_lora_and_its_gradients.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_in_a_browser_sliders_draw_and_a_tape_is_chosen(site):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser is here that shows what scripts make of a page")

    def shown(page):
        words = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--virtual-time-budget=2000",
        ]
        done = subprocess.run(
            [browser, *words, "--dump-dom", (site / page).as_uri()], capture_output=True, text=True, timeout=60
        )
        return done.stdout

    effect = re.findall(r'<div class="effect".*?</div>', shown("methods/lora.html"), re.S)[0]
    assert effect.count("<rect") == 8 and 'canvas width="24" height="24"' in effect  # r = 8 of a matrix of 24 × 24
    tape = shown("tape.html")
    assert (
        tape.count('aria-pressed="true"') == 1
        and len(re.findall(r'<section data-tape="\d" data-from="\d">', tape)) == 1
    )
    assert "<output>0: all it goes to</output>" in tape


@pytest.mark.slow
def test_a_site_is_replaced_by_another(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is of the extra `site`")
    for name in ("assets/site.css", "methods/old.html"):
        (tmp_path / "site" / name).parent.mkdir(parents=True)
        (tmp_path / "site" / name).write_text("old")
    build(tmp_path / "site", ["ia3"], jobs=1)
    assert [p.stem for p in (tmp_path / "site" / "methods").glob("*.html")] == ["ia3"]


@pytest.mark.slow
@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](../guide.md#nowhere)"])
def test_a_dead_link_is_told_and_the_site_that_was_there_stays(link, tmp_path, monkeypatch):
    pytest.importorskip("material", reason="mkdocs-material is of the extra `site`")
    (tmp_path / "site" / "assets").mkdir(parents=True)
    (tmp_path / "site" / "assets" / "site.css").write_text("mine")
    monkeypatch.setattr("minipeft.site.pages._families", lambda *of: link)
    with pytest.raises(Bad, match=r"mkdocs: WARNING .*nowhere"):
        build(tmp_path / "site", ["lora"])
    assert (tmp_path / "site" / "assets" / "site.css").read_text() == "mine" and len([*tmp_path.iterdir()]) == 1
