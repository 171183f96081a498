"""Cases of a method in a whole decoder: where virtual tokens stand, what they move, what sees them, what of them is cached."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from minipeft.conformance import docstrings
from minipeft.conformance.cases import Case
from minipeft.conformance.own import config_of
from minipeft.conformance.places import IN_DECODER, OTHER_ARCH, SIZED, place_of
from minipeft.conformance.record.more import drawn
from minipeft.conformance.record.one import answer, finished, generator, padded, single
from minipeft.conformance.record.variants import usual
from minipeft.method import Method

PAST = 3  # tokens of the first pass, where keys and values are kept


def decoders(cls: type[Method], page: docstrings.Page) -> Iterator[Case]:
    """Texts padded on the right, with gradients; on the left; and one token after the other, with keys and values of earlier ones."""
    if place_of(usual(cls)).name not in IN_DECODER:
        return
    yield from decoder(cls, "padded_right", usual(cls), page)
    yield from decoder(cls, "padded_left", usual(cls, OTHER_ARCH), page, left=True)
    yield from decoder(cls, "cached", usual(cls, OTHER_ARCH), page, left=True, cached=True)


def otherwise(cls: type[Method], variant: str, method: Method, page: docstrings.Page) -> Iterator[Case]:
    """The outputs there with an option that changes nothing elsewhere, if it does there."""
    if place_of(method).name not in IN_DECODER:
        return
    (case,) = decoder(cls, variant, method, page, slopes=False)
    other = answer(dataclasses.replace(case, config=config_of(usual(cls))))
    if any(not np.array_equal(v, other[k]) for k, v in case.want.items()):
        yield case


def decoder(
    cls: type[Method], variant: str, method: Method, page: docstrings.Page, *, left: bool = False, cached: bool = False, slopes: bool = True
) -> Iterator[Case]:  # fmt: skip
    """A pass over padded texts; where they are padded on the right, gradients too."""
    place = SIZED["other" if left else ""][f"{place_of(method).name}_in_decoder"]
    rng = generator(cls.name, variant)
    inputs, _, arrays, about = drawn(cls, variant, method, page, place, rng)
    text = padded(inputs["ids"], left)
    if cached:
        del text["labels"]
        text["past"] = np.array(PAST)
    inputs |= text
    about |= dict(since="0.2", roles=about["roles"] | dict.fromkeys(text, "base"))
    forward = finished(Case(check="forward", ask="forward", inputs={**inputs, **arrays}, **about))
    yield forward
    if slopes and not left:
        g = {f"g.{k}": single(np.asarray(rng.standard_normal(v.shape))) for k, v in forward.want.items()}
        about |= dict(roles=about["roles"] | dict.fromkeys(g, "cotangent"))
        yield finished(Case(check="grad", ask="vjp", inputs={**inputs, **arrays, **g}, **about))
