"""A configuration of PEFT is judged field by field, before anything else is done with it.

A field that PEFT 0.21.2 has not is named once and left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.errors import Bad, note
from minipeft.interop.peft.fields import Config
from minipeft.interop.peft.registry import kind_of, peft_types
from minipeft.shown import shortly

MANY = 20  # fields that are named in one line


def checked(config: Mapping[str, Any], where: Any = "adapter_config.json") -> Config:
    """The configuration, with what PEFT takes for the fields that it lacks.

    Raises `Bad`, in one line, for a value that its field cannot have and for a field that is refused; names once what is no
    field of PEFT 0.21.2.
    """
    kind = kind_of(config, where)
    known = peft_types()[kind]
    out = dict(config)
    for name, field in known.items():
        if name not in config:
            if field.needed:
                raise Bad(f"{where}: a {kind} adapter needs {name!r}")
            if field.fate == "read":
                out[name] = field.default
        elif field.fate == "refused" and config[name] and config[name] != field.default:
            raise Bad(f"{where}: {name} is not supported for {kind}: {field.why}")
        elif not field.kind.holds(config[name]):
            raise Bad(f"{where}: {name}: expected {field.kind.words}, found {shortly(config[name])}")
    if strange := sorted(set(config) - set(known)):
        named = ", ".join(map(shortly, strange[:MANY])) + (
            f" and {len(strange) - MANY} more" if len(strange) > MANY else ""
        )
        note(f"{where}: {named}: unknown to PEFT 0.21.2 for {kind}, and not honoured")
    return out
