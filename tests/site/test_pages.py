"""Links of the sources lead to pages of the site; what is no page is plain words; families say when one would take them."""

import re

import pytest

from minipeft.method import METHODS, load_methods
from minipeft.site import pages

load_methods()


@pytest.mark.parametrize(
    "text, folder, up, wanted",
    [
        ("[a](docs/guide.md#3-sites)", "", "", "[a](guide.md#3-sites)"),
        ("[a](guide.md)", "docs", "", "[a](guide.md)"),
        ("[a](minipeft/methods/lowrank/lora.py)", "", "", "[a](methods/lora.md)"),
        ("[a](../../docs/guide.md)", "examples/exercises", "", "[a](guide.md)"),
        ("[a](../../examples/exercises/README.md)", "docs/notebooks", "../", "[a](../exercises.md)"),
        ("[a](1_a_vjp.py) b", "examples/exercises", "", "a b"),
        ("[a](field.html)", "docs", "", "[a](cells.html)"),
        ("[![m](docs/field.png)](docs/field.md)", "", "", "[![m](field.png)](field.md)"),
        ("![m](img/tape.png)", "docs", "", "![m](img/tape.png)"),
        ("[a](https://example.org/x)", "docs", "", "[a](https://example.org/x)"),
        ("`f(x)[0](y)`", "docs", "", "`f(x)[0](y)`"),
        ("[a](nowhere.md)", "docs", "", "[a](nowhere.md)"),  # which mkdocs refuses
    ],
)
def test_links(text, folder, up, wanted):
    assert pages.linked(text, folder, METHODS, up) == wanted


def test_a_method_that_is_not_in_the_site_is_plain_words():
    assert pages.linked("[a](minipeft/methods/lowrank/lora.py)", "", {}) == "a"


def test_every_family_says_what_it_is_and_when_one_would_take_it():
    for family in {pages.family_of(c) for c in METHODS.values() if c.__module__.startswith("minipeft.")}:
        text = pages._family(family, METHODS)
        assert re.match(r"# \w[^:.\n]{5,60}\n", text) and len(text.split("\n\n")[1]) > 200, family
        assert all(f"(../../methods/{n}.md)" in text for n, c in METHODS.items() if pages.family_of(c) == family)


def test_a_tape_on_its_page_has_the_colours_of_the_site(tmp_path):
    (tmp_path / "assets").mkdir()
    pages._tape(tmp_path)
    style = (tmp_path / "assets" / "tape.css").read_text(encoding="utf-8")
    assert style.count("{") == style.count("}") and "max-width:40rem" in style and "font-size:1.08rem" in style
    for name in set(re.findall(r"var\((--[a-z]+)\)", style)):
        assert style.count(f"{name}:") >= 2, name  # light and dark
    text = (tmp_path / "tape.md").read_text(encoding="utf-8")
    assert text.count("data-tape=") == 8 and "type=range" in text and "Side by side" in text
