"""Equations as docstrings have them, in plain characters, as MathML.

A line's columns, two blanks apart, are equations or notes; what reads as words is a note. Whatever the little grammar here
does not know is shown as it stands: an equation that is plain is right, one that is guessed may be wrong.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Collection

from minipeft.errors import Bad

NAMES = (
    "alpha beta gamma delta varepsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
GREEK = dict(zip("αβγδεζηθκλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ", NAMES.split()))
SIGNS = {
    "·": r"\cdot ", "⊙": r"\odot ", "⊗": r"\otimes ", "×": r"\times ", "∈": r"\in ", "←": r"\leftarrow ", "∂": r"\partial ",
    "≈": r"\approx ", "≤": r"\le ", "≥": r"\ge ", "≫": r"\gg ", "∘": r"\circ ", "√": r"\surd ", "‖": r"\Vert ", "…": r"\dots ",
    "⋯": r"\cdots ", "−": "-", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "¼": r"\frac{1}{4}", "½": r"\frac{1}{2}", "∞": r"\infty ", "≠": r"\ne ", "→": r"\to ", "ℓ": r"\ell ",
    "∇": r"\nabla ", "∀": r"\forall ", "∪": r"\cup ", "∩": r"\cap ", "⊕": r"\oplus ", "∥": r"\Vert ", "&": r"\& ", "%": r"\% ",
    "{": r"\{", "}": r"\}", "#": r"\# ", "*": "*", "~": r"\sim ", "∑": r"\sum ", "𝚺": r"\Sigma ",
}  # fmt: skip
RAISED = dict(
    zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀ⁽⁾ⁿ", ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "-", "+", r"\top ", "(", ")", "n"])
)
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₋₊", "0123456789-+"))
ACCENTS = {"̄": r"\bar", "̂": r"\hat", "̃": r"\tilde"}
FUNCTIONS = ("max", "min", "exp", "log", "cos", "sin", "tanh", "det")
NAMED = {
    *FUNCTIONS,
    "mod",
    "and",
    "else",
    "hence",
    "diag",
    "gelu",
    "softmax",
    "tr",
    "in",
    "out",
}  # words that are no prose
SHORT = ("as", "at", "by", "is", "of", "on", "or", "to")  # what else has two letters is an array: bd, kz
LETTERS = {name.removeprefix("var"): name for name in GREEK.values()}


def is_note(cell: str, names: Collection[str] = ()) -> bool:
    """Whether a column reads as words: a remark beside an equation, a condition, a source. `names` stand in equations."""
    if re.match(r"\(?(paper|eqs?\.|§)|as [A-Z]|with ", cell) or "http" in cell or '"' in cell:
        return True
    words = [w for w in re.findall(r"(?<![_^\w.])[a-z]{2,}(?![\w(_])", cell) if w not in (*LETTERS, *NAMED, *names)]
    words = [w for w in words if len(w) > 2 or w in SHORT]
    return len(words) > 1 or bool(words and not re.search(r"[=←]", cell))


def latex(cell: str) -> str:
    """One equation in LaTeX. Raises `Bad` for a character that it does not know."""
    out: list[str] = []
    rest = unicodedata.normalize("NFD", cell)
    rest = re.sub(r"Σ(?=_\w+(?!\w*/))", "∑", re.sub(r"(?<=U)((_\w+)? )Σ", r"\1𝚺", rest))  # U Σ V is a matrix, Σ_i a sum
    while rest:
        taken, made = _token(rest)
        if made == " " and re.search(r"[\w}')\] ]$", out[-1]) and "mathrm" in out[-1] + _token(rest[taken:])[1]:
            made = r"\; "  # a word beside a letter
        out.append(made)
        rest = rest[taken:]
    return "".join(out)


def _token(s: str) -> tuple[int, str]:
    """How many characters the first token of s has, and its LaTeX."""
    if m := re.match(r"\s+", s):
        return m.end(), r"\; " if m.end() > 1 else " "
    if m := re.match(r"([A-Za-zα-ωΑ-Ω])([̂̃̄])", s):
        return m.end(), f"{ACCENTS[m[2]]}{{{_letter(m[1])}}}"
    if m := re.match(rf"[{''.join(RAISED)}]+", s):
        return m.end(), f"^{{{''.join(RAISED[c] for c in m[0])}}}"
    if m := re.match(rf"[{''.join(LOWERED)}]+", s):
        return m.end(), f"_{{{''.join(LOWERED[c] for c in m[0])}}}"
    if m := re.match(r"([A-Z]|b(?=[du]_))([a-z])_(\w)", s):
        return m.end(), f"{m[1]}_{{{m[2]}{m[3]}}}"
    if m := re.match(r"([A-ZΑ-Ωa-z])(\d|(?<=[ΛΓ])[a-z])(?![\w])", s):
        return m.end(), f"{_letter(m[1])}_{{{m[2]}}}"
    if m := re.match(r"([_^])(\{[^{}]*\}|\([^()]*\)|[¼½]|−?-?[A-Za-zα-ω0-9·]+['*]?)", s):
        inner = m[2][1:-1] if m[2][0] in "{(" else m[2]
        short = re.fullmatch(r"\w{1,2}", inner, re.A)
        return m.end(), f"{m[1]}{{{inner if short else latex(inner)}}}"
    if m := re.match(r"√(\([^()]*\)|[A-Za-zα-ω0-9_]+)", s):
        inner = m[1][1:-1] if m[1][0] == "(" else m[1]
        return m.end(), rf"\sqrt{{{latex(inner)}}}"
    if m := re.match(r"[A-Za-z]+(?=[^A-Za-z]|$)", s):
        return m.end(), _word(m[0])
    if m := re.match(r"\d+(\.\d+)?|'+", s):
        return m.end(), m[0]
    c = s[0]
    if c in GREEK:
        return 1, rf"\{GREEK[c]} "
    if c in SIGNS:
        return 1, SIGNS[c]
    if c in "+-=/()[],;:.|<>!":
        return 1, c
    raise Bad(f"equation: {c!r} is not known here")


def _letter(c: str) -> str:
    return rf"\{GREEK[c]} " if c in GREEK else c


def _word(w: str) -> str:
    if len(w) == 1:
        return w
    if w in LETTERS:
        return rf"\{LETTERS[w]} "
    if w in FUNCTIONS:
        return rf"\{w} "
    if len(w) == 2 and w not in ("Re", "Im") and w[0].isupper() and w[1].islower():
        return f"{w[0]}_{{{w[1]}}}"  # Wd: W of the way down
    if re.fullmatch("b[a-z]", w):
        return f"b_{{{w[1]}}}"
    return rf"\mathrm{{{w}}}"


def mathml(cell: str) -> str:
    """An equation as MathML; the characters themselves where they are not understood."""
    from latex2mathml.converter import convert

    try:
        return convert(latex(cell), display="inline")
    except Exception:  # of many kinds in that library; what stands in the docstring is right as it is
        return f"<code>{html.escape(cell)}</code>"


def dollars(text: str) -> str:
    """Markdown whose equations in LaTeX, between one dollar or two, are MathML; what stands in backticks stays. Raises what latex2mathml does."""
    from latex2mathml.converter import convert

    def to(m: re.Match[str]) -> str:
        return m[0] if m[1] else convert(m[2] or m[3], display="block" if m[2] else "inline")

    return re.sub(r"(`+[^`]*`+)|\$\$(.+?)\$\$|\$([^$\n]+(?:\n[^$\n]+)*?)\$", to, text, flags=re.DOTALL)


def typeset(text: str, names: Collection[str] = ()) -> str:
    """A docstring's equations as HTML: lines that stand further in as a table of equations and notes, others as paragraphs.

    `names` are those of settings and arrays.
    """
    out = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if all(line.startswith("    ") or not line.strip() for line in lines):
            out.append(_table(lines, names))
        else:
            out.append(f"<p>{prose(block)}</p>")
    return "\n".join(out)


def prose(text: str) -> str:
    """Words as HTML: what stands in backticks or two stars is set as that."""
    said = html.escape(" ".join(text.split()))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", re.sub(r"`(.+?)`", r"<code>\1</code>", said))


def columns(line: str) -> list[str]:
    """A line's columns; what begins with = belongs to the one before it, and "as …" is a remark of its own."""
    said = re.sub(r"\s{2,}(?=[=←])", " ", line.strip())
    said = re.sub(r",? (as (?=[A-Z])|for every |with )", r"   \1", said)
    return re.split(r"\s{2,}", said)


def _table(lines: list[str], names: Collection[str]) -> str:
    rows = []
    for line in filter(str.strip, lines):
        cells = columns(line)
        notes = [c for c in cells if is_note(c, names)]
        shown = "<span class='gap'></span>".join(mathml(c) for c in cells if c not in notes)
        rows.append(f"<tr><td>{shown}</td><td class='note'>{prose('; '.join(notes))}</td></tr>")
    return f"<table class='equations'>{''.join(rows)}</table>"
