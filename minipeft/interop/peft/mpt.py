"""MPT in PEFT: the prompts of both stacks in one tensor, the tasks' factors beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipeft.adapted import Adapter
from minipeft.errors import Bad
from minipeft.interop.peft import prompt_tuning
from minipeft.interop.peft.fields import COUNT, ONLY_STARTS, Config, needed, plain, stacks
from minipeft.interop.peft.spec import Key, Spec, Trial
from minipeft.model.arch import Arch
from minipeft.model.base import Model

KNOWN = prompt_tuning.KNOWN | {
    "num_tasks": needed(COUNT, 1),
    "num_ranks": needed(COUNT, 1),
    "prompt_tuning_init_state_dict_path": plain(ONLY_STARTS),
    "prompt_tuning_init_task": plain(ONLY_STARTS, 0),
}
ENCODER, BOTH = ["encoder.embed.tokens.out"], ["encoder.embed.tokens.out", "embed.tokens.out"]


def _reads(config: Config, arch: Arch) -> Config:
    one = arch.encoder_layers and stacks(config, arch) == 1
    return prompt_tuning.reads(config, arch) | (dict(targets=ENCODER[0]) if one else {})


def _own(adapter: Adapter) -> list[str]:
    """Its sites, without those of what is trained beside it."""
    return [site for site, m in adapter.at.items() if m.name == adapter.method.name]


def _in_the_encoder(model: Model, adapter: Adapter) -> Adapter:
    """The adapter as it is. Raises `Bad` for one in a decoder alone, or for what PEFT computes otherwise."""
    if model.arch.encoder_layers and _own(adapter) not in (ENCODER, BOTH):
        raise Bad(f"{adapter.method.name}: PEFT has prompts in the encoder or in both stacks, found {_own(adapter)[0]}")
    return prompt_tuning.pooled(model, adapter)


def _of_adapter(adapter: Adapter, modules: Mapping[str, str], folder: Any) -> Config:
    return dict(num_transformer_submodules=len(_own(adapter)))


SPEC = Spec(
    "MULTITASK_PROMPT_TUNING",
    KNOWN,
    root_keys={
        "P": Key("prompt_embeddings", size="(p stacks, d)"),
        "U": Key("prefix_task_cols", size="(n_tasks, p stacks, r)"),
        "V": Key("prefix_task_rows", size="(n_tasks, r, d)"),
    },
    settings=dict(p="num_virtual_tokens", r="num_ranks", n_tasks="num_tasks"),
    reads=_reads,
    writes=lambda m, arch: prompt_tuning.sized(m, arch) | dict(prompt_tuning_init="RANDOM"),
    of_adapter=_of_adapter,
    plain=_in_the_encoder,
    tasked=True,
    embeds=True,
    on_layer=False,
    trials=(
        Trial("llama", dict(p=3, r=2, n_tasks=2)),
        Trial("gpt2", dict(p=3, n_tasks=2, ignores="positions"), name="gpt2"),
        Trial("bert-cls", dict(p=3, n_tasks=3), name="bert"),
        Trial("t5", dict(p=3, r=2, n_tasks=2), name="t5"),
        Trial("t5gated", dict(p=3, n_tasks=2), dict(targets=ENCODER), name="t5 encoder"),
    ),
)
