"""All that a method file needs, by one import."""

from minipeft.arrays import (
    divides,
    each,
    fact,
    held,
    in_layers,
    keeps,
    network,
    of_parts,
    requires,
    size,
    stored,
    trained,
    when,
)
from minipeft.changes import lowrank, mapped, replaced, rotated, scaled, shift, steady, swapped, through
from minipeft.errors import Bad, Unfit
from minipeft.matrices import cayley, circulant, qr, skew, tucker
from minipeft.method import Base, Here, Method, Site, Step
from minipeft.over import OverAdapters, beginning
from minipeft.patterns import globbed
from minipeft.settings import at_least, choice, common_width, count, free, parts, positive, such_that, within
from minipeft.starts import (
    DOWN, FAST_PART, QR_PART, SVD_PART, UP, by, distinct, either, extremes, fill, found, found_together, inverse,
    memory, normal, norms, orthonormal, places, same, setting, uniform, words, xavier, zero_if,
)  # fmt: skip

QUERY_VALUE = "attn.q.weight attn.v.weight attn.qkv.weight"  # where most weight-space methods attach

__all__ = [
    "DOWN", "FAST_PART", "QR_PART", "QUERY_VALUE", "SVD_PART", "UP", "Bad", "Base", "Here", "Method", "OverAdapters",
    "Site", "Step", "Unfit", "at_least", "beginning", "by", "cayley", "choice", "circulant", "common_width", "count",
    "distinct", "divides", "each", "either", "extremes", "fact", "fill", "found", "found_together", "free",
    "globbed", "held", "in_layers", "inverse", "keeps", "lowrank", "mapped", "memory", "network", "normal", "norms", "of_parts",
    "orthonormal", "parts", "places", "positive", "qr", "replaced", "requires", "rotated", "same", "scaled",
    "setting", "shift", "size", "skew", "steady", "stored", "such_that", "swapped", "through", "trained", "tucker", "uniform",
    "when", "within", "words", "xavier", "zero_if",
]  # fmt: skip
