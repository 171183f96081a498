"""CPT in PEFT: its file holds E + D, and the configuration what E is made of."""

from __future__ import annotations

from typing import Any

from minipeft.errors import Bad
from minipeft.interop.peft.fields import IDS, NUMBER, ONLY_STARTS, PROMPT, Config, among, needed, optional, plain, read
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.model.arch import Arch

KNOWN = PROMPT | {
    "cpt_token_ids": needed(IDS),
    "cpt_tokens_type_mask": needed(IDS),
    "cpt_mask": plain("PEFT does not read it"),
    "opt_weighted_loss_type": read(optional(among("none", "decay")), "none"),
    "opt_loss_decay_factor": read(NUMBER, 1.0),
    "opt_projection_epsilon": read(NUMBER, 0.1),
    "opt_projection_format_epsilon": read(NUMBER, 0.1),
    "tokenizer_name_or_path": plain(ONLY_STARTS),
}


def _reads(config: Config, arch: Arch) -> Config:
    """Raises `Bad` where the tokens are not as many as the rows."""
    if (found := config["num_virtual_tokens"]) != (n := len(config["cpt_token_ids"])):
        raise Bad(
            f"adapter_config.json: num_virtual_tokens: expected {n}, one for each of cpt_token_ids, found {found}"
        )
    return dict(
        ignores="positions",
        gamma=config["opt_loss_decay_factor"] if config["opt_weighted_loss_type"] == "decay" else 1.0,
    )


def _writes(m: Any, arch: Arch) -> Config:
    return dict(
        num_virtual_tokens=len(m.tokens), cpt_mask=[1] * len(m.tokens), token_dim=arch.d, num_layers=arch.layers,
        num_attention_heads=arch.heads, num_transformer_submodules=1, opt_loss_decay_factor=m.gamma,
        opt_weighted_loss_type="none" if m.gamma == 1 else "decay",
    )  # fmt: skip


EXAMPLES = dict(tokens=(5, 9, 3, 17, 30, 8), types=(1, 2, 3, 4, 6, 8))
SPEC = Spec(
    "CPT",
    KNOWN,
    root_keys={"P": Key("prompt_embeddings", size="(p, d)")},
    settings=dict(
        tokens="cpt_token_ids", types="cpt_tokens_type_mask", eps="opt_projection_epsilon",
        eps_format="opt_projection_format_epsilon",
    ),
    reads=_reads,
    writes=_writes,
    tasked=True,
    embeds=True,
    on_layer=False,
    trials=(Trial("llama", EXAMPLES), Trial("gpt2", EXAMPLES | dict(gamma=0.5), name="gpt2")),
)  # fmt: skip
