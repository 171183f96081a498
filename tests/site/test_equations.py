"""Equations in plain characters become those that are meant; of all methods, all that are set as such."""

from dataclasses import fields

import pytest

from minipeft.conformance import docstrings
from minipeft.errors import Bad
from minipeft.method import METHODS, load_methods
from minipeft.site.equations import columns, dollars, is_note, latex, mathml, typeset

load_methods()


@pytest.mark.parametrize(
    "plain, wanted",
    [
        ("W' = W + s B A", "W' = W + s B A"),
        ("α/√r", r"\alpha /\sqrt{r}"),
        ("Σ_i B_i A_i", r"\sum _{i} B_{i} A_{i}"),
        ("U_r Σ_r V_rᵀ", r"U_{r} \Sigma _{r} V_{r}^{\top }"),
        ("Wu f(Wd a + bd)", r"W_{u} f(W_{d} a + b_{d})"),
        ("s_{l−1} + x²", "s_{l-1} + x^{2}"),
        ("softmax(z)", r"\mathrm{softmax}(z)"),
        ("Ī ← β₁ Ī", r"\bar{I} \leftarrow  \beta _{1} \bar{I}"),
        ("F2 f(F1 h + c1)", "F_{2} f(F_{1} h + c_{1})"),
        ("k[(u − t) mod β] / in", r"k[(u - t)\; \mathrm{mod}\; \beta ] / \mathrm{in}"),
        ("U diag(s) W", r"U\; \mathrm{diag}(s) W"),
    ],
)
def test_latex(plain, wanted):
    assert latex(plain) == wanted


def test_what_is_not_known_is_refused_and_shown_as_it_stands():
    pytest.importorskip("latex2mathml", reason="typesetting needs latex2mathml, of the extra `site`")
    with pytest.raises(Bad, match="'☃'"):
        latex("a ☃ b")
    assert "☃ &lt; b" in typeset("    a ☃ < b")


def test_columns_are_equations_and_remarks():
    assert [(c, is_note(c)) for c in columns("W' = W + s B A,    s = α/r as LoRA      (paper, eq. 3)")] == [
        ("W' = W + s B A,", False), ("s = α/r", False), ("as LoRA", True), ("(paper, eq. 3)", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "cell, note",
    [
        ("a' = a + Wu f(Wd a + bd) + bu", False),
        ("y_i = α_i cos θ_i h_i − α_i sin θ_i h_j", False),
        ("b(t) = b₁ (t − tinit)/(T − tinit)", False),
        ("c = c_i is the cluster of row i of U", True),
        ('cayley="exact"', True),
        ("T = the `topk` largest of z", True),
    ],
)
def test_what_reads_as_words(cell, note):
    assert is_note(cell, {"tinit"}) == note


def test_words_are_set_as_words():
    pytest.importorskip("latex2mathml", reason="typesetting needs latex2mathml, of the extra `site`")
    said = typeset("    a = b  of `it`\n\nwhere `it` < 1 is *what* is **said**.")
    assert "<td class='note'>of <code>it</code></td>" in said
    assert "<p>where <code>it</code> &lt; 1 is *what* is <b>said</b>.</p>" in said


def test_equations_between_dollars():
    pytest.importorskip("latex2mathml", reason="typesetting needs latex2mathml, of the extra `site`")
    said = dollars("Where $a_1$ and\n$b\nc$ are:\n\n$$x = \\frac{a * b}{c\\_d}$$\n\n`$PATH$` costs 5 $.")
    assert said.count("<math") == 3 and said.count('display="block"') == 1 and "`$PATH$` costs 5 $." in said
    assert "*" not in said and "_" not in said  # which would be marks of emphasis


def test_every_equation_of_every_method_is_understood():
    pytest.importorskip("latex2mathml", reason="typesetting needs latex2mathml, of the extra `site`")
    for name, cls in METHODS.items():
        names = {f.name for f in fields(cls)} | {row.name for row in docstrings.read(cls).rows}
        for block in docstrings.read(cls).equations.split("\n\n"):
            for line in block.splitlines() if block.startswith("    ") else ():
                for cell in columns(line) if line.strip() else ():
                    assert is_note(cell, names) or mathml(cell).startswith("<math"), (name, cell)
