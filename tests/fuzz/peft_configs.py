"""Configurations of PEFT's tuners, drawn: every field of every tuner away from its default at times, and targets of all kinds."""

from __future__ import annotations

import dataclasses
import re
import typing
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_bases import TASKS, VOCAB, family_of

from minipeft.interop.peft.fields import RATE
from minipeft.interop.peft.registry import specs

Modules = dict[str, list[str]]
WHOLE_NUMBERS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 7, 32, 9, 100, 0, -1)
NUMBERS = (0.0, 0.25, 0.5, 0.1, 1.0, 1.5, 3.0, 0.9, 0.01, 20.0, -0.7)
SIZES = (
    "r",
    "init_r",
    "num_ranks",
    "block_size",
    "vector_length",
    "group_size",
)  # whose default is large for these bases
EVERY_TASK = (None, None, "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "FEATURE_EXTRACTION", "QUESTION_ANS")
LAYERS = dict(llama="layers", mistral="layers", gpt2="h", bert="layer", roberta="layer", t5="block", vit="layer")
FIXED = (
    "task_type", "auto_mapping", "peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "token_dim",
    "num_transformer_submodules", "num_attention_heads", "num_layers", "use_qalora", "qalora_group_size", "arrow_config",
    "sample_at_inference", "loftq_config", "megatron_config", "megatron_core", "runtime_config", "eva_config", "corda_config",
    "lora_ga_config", "tokenizer_name_or_path", "tokenizer_kwargs", "prompt_tuning_init_text", "prompt_tuning_init_state_dict_path",
    "progressbar", "shadow_model", "total_step", "adapters", "hidden_size",
)  # fmt: skip


def some_of(rng: np.random.Generator, names: Any, most: int) -> list[str]:
    names = list(names)
    return [str(x) for x in rng.choice(names, size=min(len(names), int(rng.integers(1, most + 1))), replace=False)]


def named(rng: np.random.Generator, names: list[str]) -> Any:
    """Some modules: by their endings, in whole, or by an expression."""
    endings = sorted({re.sub(r".*\.\d+\.", "", n) for n in names} | {n.rpartition(".")[2] for n in names})
    how = rng.random()
    some = some_of(rng, endings, 3)
    if how < 0.15:
        return some_of(rng, names, 3)
    if how < 0.25:
        return rf".*\.({'|'.join(map(re.escape, some))})"
    if how < 0.3:
        return rf".*\.[0{rng.integers(3)}]\..*({'|'.join(map(re.escape, some))})"
    return some


def targets(rng: np.random.Generator, tuner: str, at: Modules) -> Any:
    if tuner == "LN_TUNING":
        return named(rng, at["norm"])
    if tuner == "ADAPTION_PROMPT":
        return None  # PEFT's own, by which it counts the layers
    if tuner == "SHADOW":
        known = "bert.encoder.layer.0" not in at["layer"]  # PEFT finds the layers of others by itself
        return None if known and rng.random() < 0.5 else r".*\.(layers?|h)\.[01]"
    if tuner == "TRAINABLE_TOKENS":
        return named(rng, at["table"][:1])
    if rng.random() < 0.08:
        return "all-linear"
    if rng.random() < 0.05:
        return None  # PEFT's own choice for the kind of model
    names = at["linear"] + (at["table"] if rng.random() < 0.15 else []) + (at["head"] if rng.random() < 0.1 else [])
    found = named(rng, names or at["head"])
    if at["patches"] and isinstance(found, list) and rng.random() < 0.5:
        found += ["projection"]
    return found


@cache
def leaves(hint: Any) -> tuple[Any, ...]:
    """The types and words that a field may be of."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(member.value for member in hint)
    parts = typing.get_args(hint)
    return tuple(x for p in parts for x in leaves(p)) if parts and typing.get_origin(hint) is not dict else (hint,)


def value(rng: np.random.Generator, hint: Any, kind: Any, default: Any) -> Any:
    """One of PEFT's type for the field; seldom one that minipeft does not hold possible, but for a rate of dropout: PEFT asks none."""
    of = leaves(hint)
    pool: list[Any] = [x for x in of if isinstance(x, str) and "[" not in x]
    pool += [True, False] if bool in of else []
    if str in of and not pool and (m := re.match(r"one of (.*)", kind.words)):
        pool += re.findall(r"'([^']*)'", m.group(1))
    whole, half = WHOLE_NUMBERS[: 9 + 6 * int(rng.random() < 0.3)], NUMBERS[: 8 + 3 * int(rng.random() < 0.3)]
    pool += list(half + whole[:3]) if float in of else list(whole) if int in of else []
    pool += [None] if type(None) in of else []
    if rng.random() < 0.9 or kind.words.startswith(RATE.words):
        pool = [v for v in pool if kind.holds(v)]
    return pool[rng.integers(len(pool))] if pool else default


def pattern(rng: np.random.Generator, kind: Any, names: list[str]) -> dict[str, Any]:
    pool = [v for v in (1, 2, 3, 4, 6, 0.5) if kind.holds({"a": v})]
    keys = named(rng, names)
    return {k: pool[rng.integers(len(pool))] for k in ([keys] if isinstance(keys, str) else keys[:2])}


def parameters(rng: np.random.Generator, at: Modules) -> dict[str, Any]:
    """Some weights by their own names, beside modules or alone; seldom one of no matrix."""
    names = at["linear"] + at["table"] + at["head"] + (at["patches"] + at["norm"] if rng.random() < 0.1 else [])
    some = named(rng, names)
    some = [str(x) for x in rng.choice(names, 2)] if isinstance(some, str) else some
    return dict(target_parameters=[f"{n}.weight" for n in some]) | (
        {} if rng.random() < 0.3 else dict(target_modules=[])
    )


def tied(rng: np.random.Generator, at: Modules) -> dict[str, Any]:
    """A token table, its head or both, adapted or saved whole, and tied."""
    names = (at["table"][:1], at["head"], at["table"][:1] + at["head"])[rng.integers(3)]
    tables = [n.rpartition(".")[2] for n in names]
    where = dict(modules_to_save=tables) if rng.random() < 0.3 else dict(target_modules=tables)
    if "target_modules" in where and (
        rng.random() < 0.4 or "transformer.wte" in at["table"]
    ):  # deviations.md#peft-tied-names
        where = dict(target_modules=rf"(.*\.)?({'|'.join([*tables, 'q_proj', 'c_fc', 'wi'])})")
    return dict(ensure_weight_tying=True) | where


def whole_modules(rng: np.random.Generator, at: Modules) -> list[str]:
    """Modules that are saved whole: norms and heads, seldom tables, linears or what holds several."""
    names = at["norm"] + at["head"]
    if rng.random() < 0.3:
        names = names + at["table"] + at["linear"]
    return [n.rpartition(".")[2] if rng.random() < 0.7 else n for n in some_of(rng, names, 2)]


def rows(rng: np.random.Generator, at: Modules) -> Any:
    """Trained tokens beside another method."""
    ids = sorted({int(x) for x in rng.integers(0, VOCAB, 3)})
    return ids if rng.random() < 0.6 or not at["table"] else {at["table"][0].rpartition(".")[2]: ids}


def task(rng: np.random.Generator, shape: str) -> Any:
    """The shape's own, or seldom something else that PEFT may take it for; of none a classifier is the base's, and not in the file."""
    return EVERY_TASK[rng.integers(len(EVERY_TASK))] if rng.random() < 0.04 else TASKS[shape]


def drawn_fields(rng: np.random.Generator, tuner: str, shape: str, at: Modules) -> dict[str, Any]:
    """A configuration of the tuner, which PEFT may refuse."""
    known: dict[str, Any] = {}
    for spec in specs().values():
        if spec.peft_type == tuner:
            known |= spec.known
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[tuner]
    hints = typing.get_type_hints(cls)
    out: dict[str, Any] = dict(task_type=task(rng, shape))
    chance = lambda p: rng.random() < p
    for f in dataclasses.fields(cls):
        name, kind = f.name, known[f.name].kind
        if name == "target_modules":
            out[name] = targets(rng, tuner, at)
        elif name in OWN.get(tuner, {}):
            if chance(0.15):
                out[name] = OWN[tuner][name](rng)
        elif name in EVERYWHERE:
            if chance(EVERYWHERE[name][0]):
                found = EVERYWHERE[name][1](rng, at)
                out |= found if name in ("target_parameters", "ensure_weight_tying") else {name: found}
        elif name == "layers_to_transform":
            if chance(0.15):
                out[name] = [[0], 0, [0, 1], [1]][rng.integers(4)]
                if chance(0.3):
                    out["layers_pattern"] = LAYERS[family_of(shape)]
        elif name == "layer_replication":
            if chance(0.1):
                out[name] = [[[0, 1], [0, 1]], [[0, 2], [1, 2]], [[0, 1], [0, 1], [0, 1]]][rng.integers(3)]
        elif name == "bias":
            if chance(0.4):
                out[name] = str(rng.choice(["all", f"{tuner.lower()}_only"]))
        elif name == "fan_in_fan_out":
            if family_of(shape) == "gpt2" and chance(0.3):
                out[name] = True
        elif name == "feedforward_modules":
            mods = out.get("target_modules")
            if mods is not None:
                out[name] = [str(rng.choice(mods))] if isinstance(mods, list) and chance(0.7) else []
        elif name in ("cpt_token_ids", "cpt_tokens_type_mask"):
            n = out.get("num_virtual_tokens", 4)
            out[name] = [int(x) for x in rng.integers(1, 5 if "mask" in name else VOCAB, n)]
        elif name == "token_indices":
            out[name] = sorted({int(x) for x in rng.integers(0, VOCAB, 4)})
        elif name in ("num_virtual_tokens", "adapter_len"):
            out[name] = int(rng.integers(1, 6))
        elif name == "adapter_layers":
            out[name] = int(rng.integers(1, 4))
        elif name in ("num_tasks", "n_tasks"):
            out[name] = int(rng.integers(2, 4))
        elif name == "encoder_hidden_size":
            out[name] = int(rng.choice((3, 6, 8)))
        elif name.endswith("_pattern") and name != "layers_pattern":
            if chance(0.3) and kind.holds({"a": 1}):
                out[name] = pattern(rng, kind, at["linear"])
        elif name in FIXED or name == "layers_pattern":
            continue
        elif chance(0.9 if name in SIZES else 0.15 if name.startswith("init_") else 0.5):
            out[name] = value(rng, hints[name], kind, f.default)
    if tuner == "POLY" and chance(0.7):
        out["r"] = 4
    if tuner == "OFT":  # of which PEFT takes one
        out |= dict(oft_block_size=0) if chance(0.5) else dict(r=0)
    if tuner == "LILY" and isinstance(names := out["target_modules"], list):  # deviations.md#peft-lily-groups
        out["target_modules"] = [n for n in names if not any(m != n and n.endswith(m) for m in names)]
    if tuner == "ADALORA":
        out |= dict(total_step=100, tinit=2, tfinal=3)
    if tuner == "XLORA":  # experts that are trained before
        sizes = dict(r=(1, 2, 3, 5), lora_alpha=(1, 3, 8), use_rslora=(False, False, True))
        kinds = [{k: of[rng.integers(len(of))] for k, of in sizes.items()} for _ in range(rng.integers(1, 4))]
        out |= dict(
            experts=[k | dict(target_modules=named(rng, at["linear"])) for k in kinds],
            xlora_size=int(rng.integers(2, 7)),
        )
    return out


EVERYWHERE: dict[str, tuple[float, Any]] = {
    "target_parameters": (0.1, parameters),
    "ensure_weight_tying": (0.07, tied),
    "exclude_modules": (0.15, lambda rng, at: named(rng, at["linear"] + at["head"])),
    "modules_to_save": (0.2, whole_modules),
    "trainable_token_indices": (0.1, rows),
}
FACTORS: dict[str, Any] = {
    "alora_invocation_tokens": lambda rng: [int(x) for x in rng.integers(3, VOCAB, 2)],
    "velora_config": lambda rng: peft.VeloraConfig(num_groups=int(rng.integers(1, 5)), scale=1.5),
    "monteclora_config": lambda rng: peft.MontecloraConfig(num_samples=int(rng.integers(1, 4)), buffer_size=3),
    "kasa_config": lambda rng: peft.KasaConfig(beta=1e-3, gamma=1e-2),
    "use_bdlora": lambda rng: peft.tuners.lora.BdLoraConfig(
        target_modules_bd_a=["q", "q_proj", "query", "fc1"],
        target_modules_bd_b=["o_proj", "wo", "down_proj", "dense"],
        nblocks=int(rng.integers(1, 4)),
        match_strict=False,
    ),
}
OWN: dict[str, Any] = {
    "LORA": FACTORS
    | {"init_lora_weights": lambda rng: str(rng.choice(["gaussian", "pissa", "olora", "orthogonal", "mica"]))},
    "ADALORA": FACTORS
    | {"use_qalora": lambda rng: True, "init_lora_weights": lambda rng: str(rng.choice(["gaussian", "pissa"]))},
    "TINYLORA": {"init_weights": lambda rng: [False, "uniform", "zeros"][rng.integers(3)]},
}
