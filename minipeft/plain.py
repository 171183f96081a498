"""Text of unknown origin, from files and other programs, made harmless for a terminal."""

from __future__ import annotations

import json
import unicodedata

ODD = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # categories of characters that are not shown, or change how others are


def plain(text: object) -> str:
    r"""Text of unknown origin on one line, for a terminal: control characters and changes of direction are spelt out.

    >>> plain("a\x1b[31mb\nc")
    'a\\x1b[31mb c'
    """
    return "".join(
        " "
        if c in "\n\r\t"
        else c.encode("unicode_escape", "surrogatepass").decode()
        if unicodedata.category(c) in ODD
        else c
        for c in str(text)
    )


def escaped(text: str) -> str:
    r"""JSON of unknown origin for a terminal: what `plain` spells out is spelt as JSON does, and stays the same JSON.

    >>> escaped('"a\u202eb"')
    '"a\\u202eb"'
    """
    odd = {c for c in set(text) if c != "\n" and unicodedata.category(c) in ODD}
    return text.translate({ord(c): json.dumps(c)[1:-1] if c != "\x7f" else r"\u007f" for c in odd})


def cell(text: object) -> str:
    """The same for a table of rich, which would read [words] in brackets as styles."""
    from rich.markup import escape

    return escape(plain(text))
