"""Errors of virtual tokens: of their positions, labels and masks, and of what is kept of them between passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minipeft.conformance import acting
from minipeft.conformance.cases import Case
from minipeft.conformance.mutants import Arrays, Where, mutant
from minipeft.conformance.own import Own
from minipeft.conformance.places import IN_DECODER, place_of
from minipeft.conformance.record.variants import usual
from minipeft.engine import ops
from minipeft.engine.backend import xp
from minipeft.errors import Bad
from minipeft.method import Here, Method
from minipeft.model import transformer
from minipeft.model.batch import IGNORE
from minipeft.model.tokens import Tokens


def base_of(cls: type[Method]) -> str:
    """Where a method acts, '' where no case says."""
    try:
        return place_of(usual(cls)).name
    except Bad:
        return ""


INSERTING = Where("that put virtual tokens before the text", lambda cls: base_of(cls) in ("embedded", "prompts"))
PREFIXED = Where("that put keys and values before the text's", lambda cls: base_of(cls) == "keys")
VIRTUAL = Where("with virtual tokens", lambda cls: base_of(cls) in IN_DECODER)


class Within(Own):
    """A mutant that computes with other functions of the model, or in a decoder from other inputs."""

    asks = frozenset(("forward", "vjp", "train", "fit"))

    def replaced(self) -> dict[tuple[Any, str], Callable[..., Any]]:
        """{(holder, name): f}; f is called with what stood there, and with what that is called with."""
        return {}

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        inputs, before = self.given(dict(inputs)) if "mask" in inputs else inputs, {}
        for (holder, name), f in self.replaced().items():
            old = before[holder, name] = vars(holder)[name]

            def new(*args: Any, old: Any = old, f: Any = f, **named: Any) -> Any:
                return f(old, *args, **named)

            setattr(holder, name, new)
        try:
            return super().outputs(case, inputs, arrays)
        finally:
            for (holder, name), old in before.items():
                setattr(holder, name, old)

    def given(self, inputs: Arrays) -> Arrays:
        """What goes into a decoder."""
        return inputs


class Inserting(Within):
    """A mutant that keeps other books of what it inserts: `after` changes them once p tokens are in."""

    def replaced(self) -> dict[tuple[Any, str], Callable[..., Any]]:
        def insert(old: Any, tokens: Tokens, h: Any, P: Any, at: int = 0, **more: Any) -> Any:
            was = vars(tokens).copy()
            made = old(tokens, h, P, at, **more)
            self.after(tokens, was, P.shape[-2])
            return made

        return {(Tokens, "insert"): insert}

    def after(self, tokens: Tokens, was: Arrays, p: int) -> None:
        pass


@mutant("forward grad", "", INSERTING)
class prompt_at_the_end(Within):
    """The prompt stands after the text."""

    def replaced(self) -> dict[tuple[Any, str], Callable[..., Any]]:
        def insert(old: Any, tokens: Tokens, h: Any, P: Any, at: int = 0, **more: Any) -> Any:
            made, p = old(tokens, h, P, at, **more), P.shape[-2]
            return ops.concatenate(made[:, p:], made[:, :p], axis=1)

        return {(Tokens, "insert"): insert}


@mutant("forward", "", INSERTING)
class prompt_at_the_end_of_all(Within):
    """The prompt stands after the text, and so do its positions, labels and mask."""

    def replaced(self) -> dict[tuple[Any, str], Callable[..., Any]]:
        def insert(old: Any, tokens: Tokens, h: Any, P: Any, at: int = 0, **more: Any) -> Any:
            return old(tokens, h, P, h.shape[1], **more)

        return {(Tokens, "insert"): insert}


def behind(x: Any, p: int, fill: Any) -> Any:
    """(b, t + p) with what is filled in at the end."""
    return xp.concatenate([x, xp.full((x.shape[0], p), fill, x.dtype)], axis=1)


@mutant("forward", "", INSERTING)
class positions_not_moved(Inserting):
    """The positions of the text are not moved by the virtual tokens: both begin at 0."""

    def after(self, tokens: Tokens, was: Arrays, p: int) -> None:
        if tokens.positions is not None:
            tokens.positions = xp.concatenate([tokens.positions[:, :p], tokens.positions[:, p:] - p], axis=1)


@mutant("forward", "", INSERTING)
class virtual_tokens_at_one_position(Inserting):
    """All virtual tokens stand at position 0."""

    def after(self, tokens: Tokens, was: Arrays, p: int) -> None:
        if tokens.positions is not None:
            tokens.positions = xp.concatenate([0 * tokens.positions[:, :p], tokens.positions[:, p:]], axis=1)


@mutant("forward", "", INSERTING)
class positions_one_further(Inserting):
    """The text begins one position too late."""

    def after(self, tokens: Tokens, was: Arrays, p: int) -> None:
        if tokens.positions is not None:
            tokens.positions = xp.concatenate([tokens.positions[:, :p], tokens.positions[:, p:] + 1], axis=1)


@mutant("forward", "", INSERTING)
class mask_hides_virtual_tokens(Inserting):
    """The mask hides the virtual tokens."""

    def after(self, tokens: Tokens, was: Arrays, p: int) -> None:
        if tokens.mask is not None:
            tokens.mask = xp.concatenate([tokens.mask[:, :p] & False, tokens.mask[:, p:]], axis=1)


@mutant("forward", "", INSERTING)
class mask_grows_at_the_end(Inserting):
    """The mask grows at its end, where the virtual tokens stand in front: padding is seen, and text is not."""

    def after(self, tokens: Tokens, was: Arrays, p: int) -> None:
        if was["mask"] is not None:
            tokens.mask = behind(was["mask"], p, True)


@mutant("forward", "", INSERTING)
class labels_grow_at_the_end(Inserting):
    """The labels grow at their end, where the virtual tokens stand in front: they are those of other tokens."""

    def after(self, tokens: Tokens, was: Arrays, p: int) -> None:
        if was["labels"] is not None:
            tokens.labels = behind(was["labels"], p, IGNORE)


@mutant("forward", "", INSERTING)
class virtual_tokens_have_labels(Inserting):
    """The virtual tokens have labels that count: 0, not −100."""

    def after(self, tokens: Tokens, was: Arrays, p: int) -> None:
        if tokens.labels is not None:
            tokens.labels = xp.concatenate([0 * tokens.labels[:, :p], tokens.labels[:, p:]], axis=1)


@mutant("forward", "", INSERTING)
class first_label_lost(Inserting):
    """The first token of the text, which the last virtual one predicts, has no label that counts."""

    def after(self, tokens: Tokens, was: Arrays, p: int) -> None:
        if tokens.labels is not None:
            tokens.labels = xp.concatenate(
                [tokens.labels[:, :p], 0 * tokens.labels[:, p : p + 1] + IGNORE, tokens.labels[:, p + 1 :]], axis=1
            )


@mutant("forward", "", VIRTUAL)
class labels_not_shifted(Within):
    """The loss compares every logit with the label of its own token, not of the next."""

    def replaced(self) -> dict[tuple[Any, str], Callable[..., Any]]:
        def loss_of(old: Any, arch: Any, logits: Any, labels: Any, weights: Any = None) -> Any:
            def moved(x: Any) -> Any:
                return None if x is None else xp.concatenate([x[:, :1], x[:, :-1]], axis=1)

            return old(arch, logits, moved(labels), moved(weights))

        return {(transformer, "loss_of"): loss_of}


@mutant("forward", "", VIRTUAL)
class padding_is_seen(Within):
    """The mask is not read: tokens attend to padding."""

    def given(self, inputs: Arrays) -> Arrays:
        self.mask = inputs["mask"]
        return inputs | dict(mask=0 * inputs["mask"] + 1)

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        out = super().outputs(case, inputs, arrays)
        return out | dict(y=out["y"] * self.mask.astype(case.dtype)[:, :, None]) if "mask" in inputs else out


@mutant("forward", "", VIRTUAL)
class padding_counts_as_positions(Within):
    """The positions that are given are not read: tokens are counted with the padding before them."""

    def given(self, inputs: Arrays) -> Arrays:
        at = xp.arange(inputs["position_ids"].shape[1])
        return inputs | dict(position_ids=0 * inputs["position_ids"] + at)


@mutant("forward", "", INSERTING)
class inserted_in_every_pass(Own):
    """The virtual tokens are inserted again in every pass, though those of the first are in the cache."""

    asks = frozenset(("forward",))

    def outputs(self, case: Case, inputs: Arrays, arrays: Arrays) -> Arrays:
        before = vars(Here)["prefill"]
        Here.prefill = property(lambda here: True)  # type: ignore[method-assign, assignment]
        try:
            return super().outputs(case, inputs, arrays)
        finally:
            Here.prefill = before  # type: ignore[method-assign]


class Carrying(Within):
    """A mutant that gives a later pass other positions."""

    asks = frozenset(("forward",))

    def positions(self, at: Any, virtual: int) -> Any:
        """From those that are right, and how many virtual tokens there are in the cache."""
        return at

    def replaced(self) -> dict[tuple[Any, str], Callable[..., Any]]:
        def carried(old: Any, tokens: Tokens, *rest: Any) -> Any:
            past, mask, at = old(tokens, *rest)
            return past, mask, self.positions(at, tokens.virtual)

        return {(acting, "carried"): carried}


@mutant("forward", "", INSERTING)
class cached_virtual_tokens_uncounted(Carrying):
    """Later passes go on at the position that the text would have without the virtual tokens in the cache."""

    def positions(self, at: Any, virtual: int) -> Any:
        return at - virtual


@mutant("forward", "", VIRTUAL)
class position_stands_still(Carrying):
    """All tokens after the first pass have the position of its last one."""

    def positions(self, at: Any, virtual: int) -> Any:
        return at - 1
