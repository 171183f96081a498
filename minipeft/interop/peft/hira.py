"""HiRA in PEFT: one rank for all modules, since rank_pattern is passed over as the first adapter is made."""

from __future__ import annotations

from minipeft.interop.peft.fields import (
    COMMON,
    CONV,
    COUNT,
    EXCLUDED,
    INIT,
    LAYERED,
    RATE,
    TARGETS,
    WHOLE,
    needed,
    optional,
    pattern,
    plain,
    read,
)  # fmt: skip
from minipeft.interop.peft.kernels import kernel, point
from minipeft.interop.peft.spec import Key, Spec, Trial, transposed, turned

KNOWN = COMMON | TARGETS | EXCLUDED | LAYERED | WHOLE | CONV | INIT | {
    "r": needed(COUNT, 32),
    "hira_dropout": read(optional(RATE), 0.0),
    "rank_pattern": plain("the arrays of the file have the ranks that PEFT made", {}, pattern(COUNT)),
}  # fmt: skip

SPEC = Spec(
    "HIRA",
    KNOWN,
    keys={"A": Key("hira_A", size="(r, in)"), "B": Key("hira_B", size="(out, r)")},
    embedding_keys={"A": Key("hira_embedding_B", turned, turned), "B": Key("hira_embedding_A", turned, turned)},
    patches={"A": kernel("hira_A"), "B": point("hira_B")},
    settings=dict(r="r", dropout="hira_dropout"),
    writes=lambda m, arch: transposed(arch),
    at_site=lambda config, arrays: dict(r=len(arrays["A"])) if "A" in arrays else {},
    trials=(
        Trial("llama", dict(r=3)),
        Trial("llama", dict(r=2), dict(targets="embed_tokens"), name="embedding"),
        Trial("gpt2", dict(r=3), name="gpt2"),
        Trial("vit-channels", dict(r=3), dict(targets="projection q_proj"), name="patches"),
    ),
)
