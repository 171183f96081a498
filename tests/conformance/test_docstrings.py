import sys
import types
from dataclasses import dataclass

import pytest

from minipeft.conformance.docstrings import Row, facts, markdown, read, rows, size
from minipeft.declare import (
    Method,
    at_least,
    choice,
    count,
    each,
    either,
    fill,
    free,
    in_layers,
    normal,
    of_parts,
    parts,
    positive,
    stored,
    trained,
    uniform,
    within,
)
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.methods.lowrank.lora import LoRA

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))

PAGE = """Gain: A Paper about Gains. Author 2020, https://example.org/paper

    W' = g W

    with sketch
    W' = g S W

Merges   exactly: W' is an ordinary weight.
Dropout  none.
Differs  Nothing
         at all.

>>> 1 + 1
2
"""


@dataclass(frozen=True)
class Gain(Method, register=False):
    """Has a page."""

    r: int = count(2)
    sketch: bool = False
    dropout: float = within("[0, 1)", 0.0)
    g = trained("out", start=fill(1))
    S = stored("r", "in", start=either("embedding", normal(), uniform("in")), when="sketch and r != 1")
    W1 = trained(..., when="embedding")

    def change(self, **arrays):
        return 0.0


def module_of(cls, text):
    """The class in a module with this docstring."""
    module = types.ModuleType("a_page")
    module.__doc__ = text
    sys.modules["a_page"] = module
    return type(cls.__name__, (cls,), {"__module__": "a_page"}, register=False)


def page(text, cls=Gain):
    """What is read of a method in a module with this docstring."""
    return read(module_of(cls, text))


@pytest.fixture(autouse=True)
def _no_module_stays():
    yield
    sys.modules.pop("a_page", None)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_page_taken_apart():
    found = page(PAGE)
    assert (found.title, found.url) == ("Gain: A Paper about Gains", "https://example.org/paper")
    assert found.source == "Author 2020, https://example.org/paper"
    assert found.equations == "    W' = g W\n\n    with sketch\n    W' = g S W"
    assert found.sections == dict(
        Merges="exactly: W' is an ordinary weight.", Dropout="none.", Differs="Nothing at all."
    )
    assert found.rows == (
        Row("g", ("out",), True, "1"),
        Row("S", ("r", "in"), False, "N(0, 1) with embedding, else U(±1/√in)", "sketch and r != 1"),
        Row("W1", ("the site's",), True, "0", "embedding"),
    )
    assert [r.initial for r in found.rows] == [
        "1",
        "N(0, 1) with embedding, else U(±1/√in); only with sketch and r ≠ 1",
        "0; only with embedding",
    ]
    assert found.settings == (
        ("targets = ''", "text"),
        ("r = 2", "an integer, at least 1, at most 65,536"),
        ("sketch = False", "True or False"),
        ("dropout = 0.0", "a number, in [0, 1)"),
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (PAGE, "", "must begin with 'Title"),
        ("Gain: A", "Gain A", "must begin with 'Title"),
        ("Merges   exactly: W' is an ordinary weight.\n", "", "has no Merges line"),
        ("Differs  Nothing\n         at all.\n", "", "has no Differs line"),
        (
            "Merges   exactly",
            "Dropout  none\nMerges   exactly",
            "has its headings in the order Dropout, Merges, Differs",
        ),
    ],
)
def test_pages_that_are_not_of_the_form(old, new, says):
    with pytest.raises(Bad, match=f"^gain: its docstring {says}"):
        page(PAGE.replace(old, new))


def test_headings_in_their_order():
    found = page(PAGE.replace("Dropout ", "Positions none.\nDropout "))
    assert list(found.sections) == ["Merges", "Positions", "Dropout", "Differs"]


def test_a_page_without_an_address():
    found = page(PAGE.replace(", https://example.org/paper", ""))
    assert found.url == "" and found.source == "Author 2020"


# --- arrays -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Several(Method, register=False):
    """Arrays of every kind."""

    name = "several"
    depth: int = count(2)
    also: bool = False
    experts: tuple[Gain, ...] = parts(Gain, (Gain(),))
    A = stored("depth", "in_max", start=normal(), shared=True)
    net = each("depth", shared=True, V=trained("n + 1", "d_model"), v=stored("n + 1", start=fill(3), when="also"))
    own = of_parts("experts", trained="also and depth > 1", g=fill(5))
    B = trained("out", shared_by=in_layers())

    def forward(self, x, base, here, **arrays):
        return base(x)


def test_rows_of_every_kind():
    found = {r.name: r for r in rows(Several)}
    assert list(found) == ["A", "V{n}", "v{n}", "g{k}", "S{k}", "W1{k}", "B"]
    assert found["A"].initial == "N(0, 1); shared by all sites" and not found["A"].trained
    assert found["V{n}"] == Row("V{n}", ("n + 1", "d_model"), True, "0", "n < depth", "all sites")
    assert found["B"].initial == "0; shared by sites of a group"
    assert found["v{n}"].initial == "3; shared by all sites; only with n < depth and (also)"
    assert found["g{k}"].initial == "5; trained with also and depth > 1" and found["g{k}"].shape == ("out",)
    assert found["S{k}"].start.startswith("as in part k's S;") and found["S{k}"].when == "sketch and r != 1"


def test_sizes():
    """As formulas, with the usual settings, where a method has the most."""

    def of(targets="attn.q.weight", depth=0, **arrays):
        about = dict(targets=targets, change=lambda self: 0, __annotations__=dict(targets=str), **arrays)
        return size(dataclass(frozen=True)(type("Made", (Gain,), about, register=False)))

    gone = dict(g=None, S=None, W1=None)
    assert of(**gone) == "0 per adapted matrix" and of(**gone, A=stored("out")) == "0 per adapted matrix"
    assert of(**gone, A=trained("r", "in"), B=trained("out", "r")) == "r (in + out) per adapted matrix"
    assert of(**gone, A=trained("out"), B=trained("out"), C=trained("1")) == "2 out + 1 per adapted matrix"
    assert of(**gone, A=trained("3", "in / 2"), B=trained("2 r")) == "3 (in / 2) + 2 r per adapted matrix"
    assert of(**gone, A=trained("r"), B=trained("in", when="sketch")) == "r per adapted matrix"
    assert of(**gone, A=trained("r if sketch else in")) == "in per adapted matrix"
    assert (
        of(**gone, A=trained("r", shared=True)) == "r in all"
        and of(**gone, A=trained(...)) == "size per adapted matrix"
    )
    assert (
        of("attn.q.bias", **gone, A=trained("out")) == "out per bias" and of("nowhere", **gone) == "as its targets say"
    )


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_in_words():
    @dataclass(frozen=True)
    class Made(Method, register=False):
        targets: str = "attn.q.weight"
        r: int = count(8)
        kept: int | None = count(None, least=0, most="r")
        alpha: float = free(8.0)
        beta: float = within("(0, 1)", 0.85)
        T: float = positive(0.1)
        terms: int = at_least(1, 5, 1000)
        grad: str = choice("detached", "full", reading=True)
        f: str = choice("a", "b", "c")
        tokens: tuple[int, ...] = ()
        experts: tuple[LoRA, ...] = parts(LoRA, (LoRA(),))
        share: int | float | None = None
        flag: bool = True

    told = dict(page(PAGE, Made).settings)
    assert {k.partition(" = ")[0]: v for k, v in told.items()} | {"experts": ""} == dict(
        targets="text", r="an integer, at least 1, at most 65,536", kept="an integer or None, at least 0, at most r",
        alpha="a number", beta="a number, in (0, 1)", T="a number, positive", terms="an integer, at least 1, at most 1,000",
        grad="detached or full (a reading)", f="a or b or c", tokens="integers", experts="", flag="True or False",
        share="an integer or a number or None",
    )  # fmt: skip
    assert "grad = 'detached'" in told and "T = 0.1" in told and "kept = None" in told


# --- all that are shipped ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_every_page_can_be_read(name):
    found = read(METHODS[name])
    assert ":" in found.title and size(METHODS[name]) and all(r.initial and r.shape for r in found.rows)
    assert found.url.startswith("https://") or name in ("full", "qlora")
    assert all(said for _, said in found.settings) and found.rows and found.equations
    assert found.sections["Merges"] and found.sections["Differs"]


def test_lora_as_its_paper_has_it():
    found = read(LoRA)
    assert {r.name: (r.shape, r.trained) for r in found.rows} == {
        "A": (("r", "in"), True),
        "B": (("out", "r"), True),
        "c": (("out",), True),
    }
    assert size(LoRA) == "r (in + out) per adapted matrix"


def test_facts_and_the_list():
    about = facts(LoRA)
    assert (
        about["name"] == "lora" and about["family"] == "lowrank" and about["file"] == "minipeft/methods/lowrank/lora.py"
    )
    assert about["url"] == "https://arxiv.org/abs/2106.09685" and about["size"].startswith("r (in + out)")
    assert about["merges"] == "exactly"
    lines = markdown([about, about | dict(name="x", url="", title="No paper")]).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| [lora](minipeft/methods/lowrank/lora.py) | [LoRA: Low-Rank")
    assert "| No paper |" in lines[3]
