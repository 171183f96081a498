"""The tape of one forward and backward pass, recorded and shown: what is on it, what it keeps, where the gradient ends.

    watching   what is watched during a pass: ops, the parts they belong to, stops
    kept       the arrays that closures hold, and that are gone when the tape has been used up
    record     the pass as plain data: `record(adapted, batch)` of any model, `Tape.to_json()`
    examples   tapes of methods on tiny models: `example("name")`, `by_layer`, `side_by_side`
    text       in a terminal
    svg        as a drawing
    page       as a page, with a switch and a slider; its fragments, `choosing`, `panel`, `sides` and `legend`, want `RULES`

>>> tape = example(USUAL[0].method, layers=1)
>>> len(tape.taped), tape.kept, tape.end.name
(27, 75556, 'embed.tokens')
"""

from minipeft.tape.examples import USUAL, Example, by_layer, example, side_by_side
from minipeft.tape.page import INTRO, RULES, SCRIPT, choosing, legend, page, panel, sides
from minipeft.tape.record import Array, Op, Part, Stop, Tape, record
from minipeft.tape.svg import svg
from minipeft.tape.text import ROLES, WIDTH, lines, text, totals

__all__ = [
    "INTRO",
    "ROLES",
    "RULES",
    "SCRIPT",
    "USUAL",
    "WIDTH",
    "Array",
    "Example",
    "Op",
    "Part",
    "Stop",
    "Tape",
    "by_layer",
    "choosing",
    "example",
    "legend",
    "lines",
    "page",
    "panel",
    "record",
    "side_by_side",
    "sides",
    "svg",
    "text",
    "totals",
]
