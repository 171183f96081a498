"""All that a method file needs, by one import."""

from minipeft.arrays import (
    each,
    either,
    fact,
    fill,
    found,
    found_together,
    held,
    normal,
    of_parts,
    orthonormal,
    requires,
    same,
    setting,
    size,
    stored,
    trained,
    uniform,
    when,
    zero_if,
)
from minipeft.changes import lowrank, replaced, rotated, scaled, shift, skew, steady
from minipeft.errors import Bad, Unfit
from minipeft.method import Here, Method, Site, Step, globbed
from minipeft.over import OverAdapters
from minipeft.settings import at_least, choice, count, free, parts, positive, such_that, within

QUERY_VALUE = "attn.q.weight attn.v.weight attn.qkv.weight"  # where most weight-space methods attach

__all__ = [
    "QUERY_VALUE", "Bad", "Here", "Method", "OverAdapters", "Site", "Step", "Unfit", "at_least", "choice", "count", "each", "either", "fact",
    "fill", "found", "found_together", "free", "globbed", "held", "lowrank", "normal", "of_parts", "orthonormal", "parts", "positive", "replaced",
    "requires", "rotated", "same", "scaled", "setting", "shift", "size", "skew", "steady", "such_that", "stored", "trained", "uniform", "when", "within", "zero_if",
]  # fmt: skip
