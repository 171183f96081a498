"""Expressions of declarations: shapes and conditions mean what they say, and slips are told."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft.errors import Bad
from minipeft.expressions import evaluate, names

TABLE = dict(r=3, m=5, out=7, V=11, flag=True, other=False, start="zero", kept=None)


@dataclass(frozen=True)
class Term:
    """An expression as it is written in declarations, and its value."""

    text: str
    value: Any


ATOMS = st.sampled_from([Term(k, TABLE[k]) for k in ("r", "m", "out", "V")]) | st.integers(0, 30).map(
    lambda n: Term(str(n), n)
)
FACTORS = st.deferred(
    lambda: (
        ATOMS
        | SUMS.map(lambda a: Term(f"({a.text})", a.value))
        | ATOMS.map(lambda a: Term(a.text + "²", a.value**2))
        | SUMS.map(lambda a: Term(f"({a.text})³", a.value**3))
        | st.builds(lambda a, b: Term(f"max({a.text}, {b.text})", max(a.value, b.value)), SUMS, SUMS)
        | SUMS.map(lambda a: Term(f"abs({a.text})", abs(a.value)))
        | st.builds(
            lambda a, c, b: Term(f"({a.text} if {c.text} else {b.text})", a.value if c.value else b.value),
            SUMS, CONDITIONS, SUMS,
        )
    )
)  # fmt: skip
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
COMPARED = {
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip
PLAIN = (
    st.sampled_from([Term("flag", True), Term("other", False), Term("True", True), Term("False", False)])
    | st.builds(
        lambda a, by, b: Term(f"{a.text} {by} {b.text}", COMPARED[by](a.value, b.value)),
        ATOMS, st.sampled_from(list(COMPARED)), ATOMS,
    )
    | st.sampled_from([Term("start == 'zero'", True), Term('start != "zero"', False), Term("kept is None", True)])
)  # fmt: skip
CONDITIONS = st.deferred(
    lambda: (
        PLAIN
        | PLAIN.map(lambda a: Term(f"not {a.text}", not a.value))
        | st.builds(lambda a, b: Term(f"({a.text}) and ({b.text})", a.value and b.value), CONDITIONS, CONDITIONS)
        | st.builds(lambda a, b: Term(f"({a.text}) or ({b.text})", a.value or b.value), CONDITIONS, CONDITIONS)
        | st.builds(lambda a, b, c: Term(f"{a.text} or {b.text} and {c.text}", a.value or (b.value and c.value)), PLAIN, PLAIN, PLAIN)
    )
)  # fmt: skip


@given(SUMS)
def test_sums_and_products_mean_what_they_say(term):
    assert evaluate(term.text, TABLE) == term.value


@given(CONDITIONS)
def test_conditions_mean_what_they_say(term):
    found = evaluate(term.text, TABLE)
    assert found is term.value


def test_division_is_of_whole_numbers_in_a_shape():
    assert evaluate("V/2", TABLE) == 5 and evaluate("r (out/2) (out/2 − 1)/2", TABLE) == 9
    assert evaluate("int(V // 2.5)", TABLE) == 4 and evaluate("V % 4", TABLE) == 3


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("r if flag else m", 3),
        ("r if other else m", 5),
        ("r if other else m if flag else V", 5),
        ("max(1, min(V, out)) r", 21),
        ("quota(1, 4, 10)", 2),  # 2½, to the even number
        ("quota(3, 4, 5 + 1) r", 12),
        ("flag (r + 1)", 4),  # a truth is 1
        ("2r", 6),
        ("round(m (1 − 0.5))", 2),  # of two and a half: to the even number
        ("round(r (1 − 0.5))", 2),
        ("1.5 r", 4.5),
        ("1e-3 r", 0.003),
        ("-r + m", 2),
        ("(r) (m)", 15),
        ("r² m", 45),
        ("r²m", 45),
        ("0 < r <= 3", True),
        ("start == 'svd' or start == 'zero'", True),
        ("not flag and other", False),
        ("not (flag and other)", True),
        ("kept is None and r == 3", True),
        ("r if kept is None else kept", 3),
    ],
)
def test_by_hand(expression, value):
    found = evaluate(expression, TABLE)
    assert found == value and type(found) is type(value)


def test_words_of_python_are_names():
    """`in` and `lambda` are letters of shapes."""
    known = {"in": 4, "out": 3, "lambda": 2}
    assert evaluate("lambda (in + out)", known) == 14 and names("lambda (in + out)") == set(known)
    assert evaluate("asa and ins", {"asa": 1, "ins": 2}) == 2 and names("asa and ins") == {"asa", "ins"}


def test_the_names_that_an_expression_needs():
    assert names("max(1, int(d // reduction))") == {"d", "reduction"}
    assert names("start != 'zero' and not embedding") == {"start", "embedding"}
    assert names("r if kept is None else kept") == {"r", "kept"} and names("3") == set()


def test_what_is_not_needed_is_not_asked_for():
    assert evaluate("flag", {"flag": 1}) == 1
    with pytest.raises(Bad, match="stands for nothing"):  # either side of a condition must be known
        evaluate("flag or unknown", {"flag": 1})


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("r & m", "cannot read the expression 'r & m' from '& m' on"),
        ("r +", r"cannot read the expression 'r \+'"),
        ("(r", "cannot read"),
        ("m/0", "cannot read"),
        ("m % 0", "cannot read"),
        ("r q", r"'q' stands for nothing; known: V, flag, kept, m, other, out, r, start"),
        ("ouut + 1", r"'ouut' stands for nothing \(did you mean out"),
        ("__import__", "stands for nothing"),
        ("start + 1", "cannot read"),
        ("kept > 1", "cannot read"),
        ("", "cannot read"),
        ("r if flag", "cannot read"),
        ("r == ", "cannot read"),
        ("r = 3", "cannot read"),
        ("r.real", "cannot read"),
        ("[r]", "cannot read"),
        ("r, m", "cannot read"),
        ("(r, m)", "Tuple has no place there"),
        ("'open", "cannot read"),
        ("open(r)", "stands for nothing"),
        ("min", "cannot read"),
    ],
)
def test_expressions_that_cannot_be_read(expression, says):
    with pytest.raises(Bad, match=says) as found:
        evaluate(expression, TABLE)
    assert "\n" not in str(found.value)


@given(st.text(alphabet="r m()+-*/<>=!&'\"²andor1.,[]", max_size=12))
def test_any_text_has_a_value_or_is_refused(text):
    try:
        evaluate(text, TABLE)
    except Bad as why:
        assert "\n" not in str(why)
