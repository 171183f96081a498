"""The fields of adapter_config.json: what values one may have, and what becomes of it.

Each field has a `Field`: what values it may have, and its fate. It is *read*; or it changes nothing that is computed here, and
`why` says so; or it is *refused* where it is set, as it changes what is computed and is not supported. A method's file names all
fields of PEFT 0.21.2 for its tuner; `minipeft.interop.peft.config` judges a configuration by them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minipeft.errors import Bad
from minipeft.limits import LAYERS as LAYERS_MOST
from minipeft.limits import NAMES as NAMES_MOST
from minipeft.limits import PATTERNS
from minipeft.limits import WHOLE as WHOLE_MOST
from minipeft.model.arch import Arch
from minipeft.patterns import ENDING, is_plain, refuse_broken

Config = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A set of JSON values: a test, and its name in a message."""

    words: str
    holds: Callable[[Any], bool]
    of: Callable[[Any], Any] = lambda v: v  # a value as we have it
    options: tuple[Any, ...] = ()  # all values, where they are few
    parts: Mapping[str, Kind] = dataclasses.field(default_factory=dict)  # of a dictionary with these fields


@dataclass(frozen=True)
class Field:
    """One field: its values, its fate ("read", "plain" or "refused"), its value where absent, and whether it must be there."""

    kind: Kind
    fate: str = "read"
    default: Any = None
    why: str = ""
    needed: bool = False


# --- kinds of values ----------------------------------------------------------------------------------------------------


def is_number(v: Any) -> bool:
    if isinstance(v, bool) or not isinstance(v, int | float):
        return False
    try:
        return math.isfinite(float(v))
    except OverflowError:
        return False


def _is_regex(text: Any, template: str = "{}") -> bool:
    try:
        if isinstance(text, str):
            refuse_broken(template.replace("{}", text), "")
            return True
    except Bad:
        pass
    return False


def _are(v: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(v, list) and len(v) <= NAMES_MOST and all(holds(x) for x in v)


def whole(low: int, high: int = WHOLE_MOST) -> Kind:
    """Integers of a range."""
    return Kind(
        f"an integer of at least {low}" if high == WHOLE_MOST else f"an integer in {low} … {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def optional(kind: Kind) -> Kind:
    """The same, or null."""
    return Kind(
        f"{kind.words} or null",
        lambda v: v is None or kind.holds(v),
        lambda v: None if v is None else kind.of(v),
        kind.options,
    )


def among(*options: Any) -> Kind:
    """One of a few values."""
    return Kind(
        f"one of {', '.join(map(repr, options))}",
        lambda v: any(type(v) is type(o) and v == o for o in options),
        options=options,
    )


def pattern(kind: Kind) -> Kind:
    """A dictionary from regular expressions, which end a module's name, to values."""
    return Kind(
        f"a dictionary from regular expressions to {kind.words}",
        lambda v: (
            v is None
            or (
                isinstance(v, dict)
                and len(v) <= PATTERNS
                and all((is_plain(k) or _is_regex(k, ENDING)) and kind.holds(x) for k, x in v.items())
            )
        ),
    )


def group(**kinds: Kind) -> Kind:
    """A dictionary, or null, whose fields are of these kinds; others are passed over."""
    return Kind(
        f"null or a dictionary of {', '.join(f'{name} ({kind.words})' for name, kind in kinds.items())}",
        lambda v: (
            v is None or (isinstance(v, dict) and all(k.holds(v[name]) for name, k in kinds.items() if name in v))
        ),
        parts=kinds,
    )


ANY = Kind("anything", lambda v: True)
FLAG = Kind("true or false", lambda v: v is None or isinstance(v, bool), bool)
NUMBER = Kind("a finite number", is_number, float)
NOT_NEGATIVE = Kind("a number of at least 0", lambda v: is_number(v) and v >= 0, float)
POSITIVE = Kind("a number above 0", lambda v: is_number(v) and v > 0, float)
RATE = Kind("a number in [0, 1)", lambda v: is_number(v) and 0 <= v < 1, float)
COUNT = whole(1)
RANK = Kind(
    "a number above 0 or null",
    lambda v: v is None or (is_number(v) and v > 0),
    lambda v: v if v is None or (isinstance(v, float) and v <= 1) else int(v),  # a share, or how many
)
SEED = Kind(
    "an integer of at most 64 bits", lambda v: isinstance(v, int) and not isinstance(v, bool) and -(2**63) <= v < 2**64
)
NAMES = Kind(
    "a list of names or a regular expression",
    lambda v: v is None or _are(v, lambda x: isinstance(x, str)) or _is_regex(v),
)
LIST = Kind(
    "a list of names",
    lambda v: v is None or (_are(v, lambda x: isinstance(x, str)) and len(v) <= PATTERNS),
)
NAME_OR_NAMES = Kind(
    "a name or a list of names", lambda v: v is None or isinstance(v, str) or _are(v, lambda x: isinstance(x, str))
)
LAYERS = Kind(
    "an integer or a list of integers",
    lambda v: v is None or whole(0).holds(v) or (_are(v, whole(0).holds) and len(v) <= LAYERS_MOST),
)
RANGES = Kind(
    f"pairs of layers, the second above the first, {LAYERS_MOST:,} layers at most",
    lambda v: (
        v is None
        or (
            _are(v, lambda x: _are(x, whole(0, LAYERS_MOST).holds) and len(x) == 2 and x[0] < x[1])
            and sum(end - start for start, end in v) <= LAYERS_MOST
        )
    ),
)
IDS = Kind("a list of token ids", lambda v: _are(v, whole(0).holds), tuple)
TOKENS = Kind(
    "a list of token ids, or such a list for each module",
    lambda v: v is None or IDS.holds(v) or (isinstance(v, dict) and all(IDS.holds(x) for x in v.values())),
)
BIAS = Kind(
    "'none', 'all' or one that ends in '_only'",
    lambda v: v is None or v in ("none", "all") or (isinstance(v, str) and v.endswith("_only")),
)
TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")


# --- fates ----------------------------------------------------------------------------------------------------------------


def read(kind: Kind, default: Any = None) -> Field:
    """A field that is honoured."""
    return Field(kind, "read", default)


def needed(kind: Kind, default: Any = None) -> Field:
    """The same, and PEFT always writes it: a file without it is none of PEFT's."""
    return Field(kind, "read", default, needed=True)


def plain(why: str, default: Any = None, kind: Kind = ANY) -> Field:
    """A field that changes nothing of what is computed with a file's tensors."""
    return Field(kind, "plain", default, why)


def refused(why: str, default: Any = None) -> Field:
    """A field that changes what is computed and is not supported: it must be empty, false or 0."""
    return Field(ANY, "refused", default, why)


ONLY_STARTS = "says how the arrays began; the file has them as they became"
LAYOUT = "PEFT finds out by itself how each layer stores its weight"

COMMON = {
    "peft_type": Field(Kind("a text", lambda v: isinstance(v, str)), needed=True),
    "task_type": read(optional(among(*TASKS))),
    "auto_mapping": read(optional(Kind("a dictionary", lambda v: isinstance(v, dict)))),
    "peft_version": plain("who wrote the file"),
    "base_model_name_or_path": plain("the base is given"),
    "revision": plain("the base is given"),
    "inference_mode": plain("whether PEFT freezes the arrays", False),
}
TARGETS = {"target_modules": read(NAMES)}
EXCLUDED = {"exclude_modules": read(NAMES)}
REPEATED = {"layer_replication": read(RANGES)}
LAYERED = {"layers_to_transform": read(LAYERS), "layers_pattern": read(NAME_OR_NAMES)}
WHOLE = {"modules_to_save": read(LIST)}
CONV = {"fan_in_fan_out": plain(LAYOUT, False, FLAG)}
BIASES = {"bias": read(BIAS, "none")}
INIT = {"init_weights": plain(ONLY_STARTS, True)}

PROMPT = COMMON | WHOLE | {
    "num_virtual_tokens": needed(COUNT),
    "token_dim": read(optional(COUNT)),
    "num_transformer_submodules": read(optional(among(1, 2))),
    "num_attention_heads": read(optional(COUNT)),
    "num_layers": read(optional(COUNT)),
}  # fmt: skip


def stacks(config: Config, arch: Arch) -> int:
    """For how many stacks PEFT makes virtual tokens. Raises `Bad` for two where there is one."""
    found = config.get("num_transformer_submodules", 2 if arch.encoder_layers else 1)
    if found is None:
        found = 2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1
    if found == 2 and not arch.encoder_layers:
        raise Bad(
            f"adapter_config.json: num_transformer_submodules: expected 1, as {arch.family} has one stack, found 2"
        )
    return int(found)
