"""All that a method file needs, by one import."""

from minipeft.arrays import each, fact, held, keeps, of_parts, requires, size, stored, trained, when
from minipeft.changes import circulant, lowrank, mapped, replaced, rotated, scaled, shift, skew, steady, swapped
from minipeft.errors import Bad, Unfit
from minipeft.method import Here, Method, Site, Step, globbed
from minipeft.over import OverAdapters
from minipeft.settings import at_least, choice, count, free, parts, positive, such_that, within
from minipeft.starts import (
    QR_PART, SVD_PART, either, fill, found, found_together, normal, norms, orthonormal, places, same, setting, uniform, words,
    xavier, zero_if,
)  # fmt: skip

QUERY_VALUE = "attn.q.weight attn.v.weight attn.qkv.weight"  # where most weight-space methods attach

__all__ = [
    "QR_PART", "QUERY_VALUE", "SVD_PART", "Bad", "Here", "Method", "OverAdapters", "Site", "Step", "Unfit",
    "at_least", "choice", "circulant", "count", "each", "either", "fact", "fill", "found", "found_together", "free", "globbed",
    "held", "keeps", "lowrank", "mapped", "normal", "norms", "of_parts", "orthonormal", "parts", "places", "positive", "replaced", "requires",
    "rotated", "same", "scaled", "setting", "shift", "size", "skew", "steady", "stored", "such_that", "swapped", "trained",
    "uniform", "when", "within", "words", "xavier", "zero_if",
]  # fmt: skip
