"""Text of unknown origin, from files and other programs, made harmless for a terminal."""

from __future__ import annotations

import unicodedata


def plain(text: object) -> str:
    r"""Text of unknown origin on one line, for a terminal: control characters and changes of direction are spelt out.

    >>> plain("a\x1b[31mb\nc")
    'a\\x1b[31mb c'
    """
    odd = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return "".join(
        " "
        if c in "\n\r\t"
        else c.encode("unicode_escape", "surrogatepass").decode()
        if unicodedata.category(c) in odd
        else c
        for c in str(text)
    )


def cell(text: object) -> str:
    """The same for a table of rich, which would read [words] in brackets as styles."""
    from rich.markup import escape

    return escape(plain(text))
