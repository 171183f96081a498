import sys
import types
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.conformance import tiny
from minipeft.conformance.docstrings import Row, evaluate, facts, markdown, read, symbols
from minipeft.errors import Bad
from minipeft.method import METHODS, Method, load_methods
from minipeft.methods.lowrank.lora import LoRA
from minipeft.targets import sites

load_methods()
SHIPPED = sorted(n for n, cls in METHODS.items() if cls.__module__.startswith("minipeft.methods."))

PAGE = """Gain: A Paper about Gains. Author 2020, https://example.org/paper

    W' = g W

    g  (out)       trained   1, hence W' = W
    S  (r, in (2)) stored    U(0, 1); only with sketch
    W1 like W      trained   W

Size     out + r numbers per adapted matrix.
Merges   exactly: W' is an ordinary weight.
Differs  Nothing
         at all.

>>> 1 + 1
2
"""


def page(text, **fields):
    """What is read of a method in a module with this docstring."""
    module = types.ModuleType("a_page")
    module.__doc__ = text
    sys.modules["a_page"] = module
    try:
        return read(type("Gain", (Method,), {"__module__": "a_page"}, register=False))
    finally:
        del sys.modules["a_page"]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_page_taken_apart():
    found = page(PAGE)
    assert (found.title, found.url) == ("Gain: A Paper about Gains", "https://example.org/paper")
    assert found.source.startswith("Author 2020") and found.equations == "    W' = g W"
    assert found.rows == (
        Row("g", ("out",), True, "1, hence W' = W"),
        Row("S", ("r", "in (2)"), False, "U(0, 1); only with sketch"),
        Row("W1", ("*W",), True, "W"),
    )
    assert [r.optional for r in found.rows] == [False, True, False]
    assert found.sections["Differs"] == "Nothing at all." and found.size == ("out + r", False)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (PAGE, "", "must begin with 'Title"),
        ("Gain: A", "Gain A", "must begin with 'Title"),
        ("Size     out + r numbers per adapted matrix.\n", "", "has no Size line"),
        ("Merges   exactly: W' is an ordinary weight.\n", "", "has no Merges line"),
        ("Differs  Nothing\n         at all.\n", "", "has no Differs line"),
        ("Size     out", "Merges   out", "has no Size line"),
        ("Merges   exactly", "Dropout  none\nMerges   exactly", "has its headings in the order Size, Dropout, Merges"),
    ],
)
def test_pages_that_are_not_of_the_form(old, new, says):
    with pytest.raises(Bad, match=says):
        page(PAGE.replace(old, new))


def test_the_size_line():
    assert page(PAGE.replace("numbers per adapted matrix", "numbers in all")).size == ("out + r", True)
    with pytest.raises(Bad, match="the Size line must read"):
        _ = page(PAGE.replace("numbers", "things")).size


@pytest.mark.parametrize("name", SHIPPED)
def test_every_page_can_be_read(name):
    found = read(METHODS[name])
    assert ":" in found.title and found.size[0] and all(r.initial for r in found.rows)
    assert found.url.startswith("https://") or name in ("full", "qlora")
    assert found.rows or "like" in (sys.modules[METHODS[name].__module__].__doc__ or "")


def test_lora_as_its_paper_has_it():
    found = read(LoRA)
    assert {r.name: (r.shape, r.trained) for r in found.rows} == {
        "A": (("r", "in"), True),
        "B": (("out", "r"), True),
        "c": (("out",), True),
    }
    table = symbols(LoRA(r=3, alpha=2.0), sites(tiny.model())["layers.0.attn.v.weight"])
    assert (table["in"], table["out"], table["r"], table["alpha"]) == (24, 12, 3, 2.0)
    assert evaluate(found.size[0], table) == 3 * (24 + 12)


def test_symbols_of_other_sites():
    every = sites(tiny.model("vit"))
    bias = symbols(LoRA(), every["layers.0.mlp.up.bias"])
    assert bias["out"] == bias["size"] == 40 and "in" not in bias
    assert symbols(LoRA(), every["layers.0.mlp.hidden"])["d"] == 40 and bias["d"] == 24
    places = symbols(LoRA(), sites(tiny.model("gpt2"))["embed.positions.weight"])
    assert (places["V"], places["d"]) == (40, 24)  # rows and columns of the table itself
    words = symbols(LoRA(), sites(tiny.model())["embed.tokens.weight"])
    assert (words["V"], words["d"], words["H"], words["G"], words["e"], words["L"]) == (50, 24, 6, 3, 4, 2)


def test_facts_and_the_list():
    about = facts(LoRA)
    assert (
        about["name"] == "lora" and about["family"] == "lowrank" and about["file"] == "minipeft/methods/lowrank/lora.py"
    )
    assert about["url"] == "https://arxiv.org/abs/2106.09685" and about["size"].startswith("r (in + out)")
    assert about["merges"] == "exactly"
    rows = markdown([about, about | dict(name="x", url="", title="No paper")]).splitlines()
    assert len(rows) == 4 and rows[2].startswith("| [lora](minipeft/methods/lowrank/lora.py) | [LoRA: Low-Rank")
    assert "| No paper |" in rows[3]


# --- expressions ------------------------------------------------------------------------------------------------------

TABLE = dict(r=3, m=5, out=7, V=11)


@dataclass(frozen=True)
class Term:
    """An expression as it is written in docstrings, and its value."""

    text: str
    value: int


ATOMS = st.sampled_from([Term(k, v) for k, v in TABLE.items()]) | st.integers(0, 30).map(lambda n: Term(str(n), n))
FACTORS = st.deferred(
    lambda: (
        ATOMS
        | SUMS.map(lambda a: Term(f"({a.text})", a.value))
        | ATOMS.map(lambda a: Term(a.text + "²", a.value**2))
        | SUMS.map(lambda a: Term(f"({a.text})³", a.value**3))
    )
)
PRODUCTS = FACTORS | st.builds(
    lambda a, by, b: Term(f"{a.text}{by}{b.text}", a.value * b.value),
    FACTORS,
    st.sampled_from([" ", " · ", " * "]),
    FACTORS,
)
SUMS = PRODUCTS | st.builds(
    lambda a, sign, b: Term(f"{a.text} {sign} {b.text}", a.value + b.value * (1 if sign == "+" else -1)),
    PRODUCTS, st.sampled_from("+-−"), PRODUCTS,
)  # fmt: skip


@given(SUMS)
def test_expressions_mean_what_they_say(term):
    assert evaluate(term.text, TABLE) == term.value


def test_division_is_of_whole_numbers():
    assert evaluate("V/2", TABLE) == 5 and evaluate("r (out/2) (out/2 − 1)/2", TABLE) == 9


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("r & m", "cannot read the expression 'r & m'"),
        ("r +", r"cannot read the expression 'r \+'"),
        ("(r", "cannot read"),
        ("m/0", "cannot read"),
        ("r q", r"'q' stands for nothing; known: V, m, out, r"),
        ("__import__", "stands for nothing"),
        ("'x'", "cannot read"),
        ("", "cannot read"),
    ],
)
def test_expressions_that_cannot_be_read(expression, says):
    with pytest.raises(Bad, match=says):
        evaluate(expression, TABLE)
