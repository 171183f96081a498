"""Other people's files and ours: loading base checkpoints, reading and writing adapters."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.engine.backend import to_device
from minipeft.errors import Bad, near
from minipeft.model.arch import Arch, Model, Names, converted, float_type

FAMILIES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "bert": "bert",
    "roberta": "bert",
    "t5": "t5",
    "vit": "vit",
}  # model_type in config.json -> the file of this package that knows it

HEADS = {
    "ForCausalLM": "lm",
    "LMHeadModel": "lm",
    "ForConditionalGeneration": "lm",
    "ForMaskedLM": "mlm",
    "ForSequenceClassification": "classify",
    "ForImageClassification": "classify",
    "ForTokenClassification": "tokens",
    "Model": "none",
}  # end of the class name in config.json -> our head
CLASSIFIERS = ("classify", "tokens")


def _family(model_type: str) -> Any:
    if model_type not in FAMILIES:
        raise Bad(
            f"model_type {model_type!r} is not supported; expected one of {', '.join(FAMILIES)}{near(model_type, FAMILIES)}"
        )
    return importlib.import_module(f"minipeft.checkpoints.{FAMILIES[model_type]}")


def family_names(arch: Arch) -> Names:
    """The bijection between our module names and this architecture's family."""
    return Names(*_family(arch.family).table(arch))


def read_arch(config: dict[str, Any]) -> Arch:
    """The facts in a config.json. Raises `Bad` for a family, head or setting that is not supported."""
    if "model_type" not in config:
        raise Bad("config.json has no model_type: it is no transformers checkpoint")
    family = _family(config["model_type"])
    architecture = (config.get("architectures") or ["Model"])[0]
    head = next((h for end, h in HEADS.items() if architecture.endswith(end)), None)
    if head is None:
        raise Bad(
            f"architecture {architecture!r} is not supported; expected a name that ends in one of {', '.join(HEADS)}"
        )
    try:
        arch = family.arch(config, head)
    except KeyError as why:
        raise Bad(f"config.json of a {config['model_type']} model has no {why.args[0]!r}") from None
    labels = len(config.get("id2label") or {}) or config.get("num_labels") or 2
    eos = config.get("eos_token_id")
    return dataclasses.replace(
        headed(arch, head, labels),
        family=config["model_type"],
        pad_id=config.get("pad_token_id"),
        eos_id=eos[0] if isinstance(eos, list) else eos,
        start_id=config.get("decoder_start_token_id"),
    )


def headed(arch: Arch, head: str, labels: int = 0) -> Arch:
    """The facts of the same body with another head. A decoder's classifier of sequences has no bias, all others have."""
    biased = tuple(m for m in arch.biased if m != "score")
    if head == "tokens" or (head == "classify" and not arch.causal):
        biased += ("score",)
    return dataclasses.replace(arch, head=head, labels=labels if head in CLASSIFIERS else 0, biased=biased)


def load(folder: str | Path, dtype: Any = None) -> Model:
    """A base model from a Hugging Face checkpoint folder (config.json and safetensors, sharded or not).

    Half-precision weights are widened to float32 unless `dtype` says otherwise: a type, or "bfloat16" as in
    `Model.astype`. Weights stored as (in, out) and patch convolutions are put right here. Tensors that belong to another head
    than the configuration names are kept aside, in `Model.spare`. Raises `Bad`, in one line, for a type of no floating-point
    numbers, a missing or unsupported file, missing, unexpected or misshaped tensors, and NaN.
    """
    from minipeft.checkpoints.files import read_folder
    from minipeft.model.transformer import shapes

    dtype = None if dtype is None else float_type(dtype)
    half = str(dtype) == "bfloat16"
    config, tensors = read_folder(folder, None if half else dtype)
    arch = read_arch(config)
    names = family_names(arch)
    head, table = (tensors.get(_theirs(names, f"{m}.weight") or "") for m in ("head", "embed.tokens"))
    if (
        arch.tied
        and head is not None
        and table is not None
        and not (head.shape == table.shape and (head == table).all())
    ):
        arch = dataclasses.replace(arch, tied=False)  # the config says tied, the file says otherwise
    expected = shapes(arch)
    params: dict[str, Any] = {}
    spare: dict[str, Any] = {}
    strange = []
    for key, a in tensors.items():
        ours = _ours(names, key, arch)
        if ours is None or ours not in expected:
            if _ignorable(key, ours, arch):
                continue
            if ours is not None and ours.startswith(("pooler.", "head.", "score.")):
                spare[key] = a
            else:
                strange.append(key)
            continue
        a = our_layout(names, ours, a)
        if tuple(a.shape) != expected[ours]:
            turned = "; it looks transposed" if tuple(a.shape[::-1]) == expected[ours] else ""
            raise Bad(f"{folder}: {key}: expected shape {expected[ours]}, found {tuple(a.shape)}{turned}")
        if dtype is None and a.dtype.itemsize < 4 and a.dtype.kind == "f":
            a = a.astype("float32")
        params[ours] = a
    missing = [k for k in expected if k not in params]
    if missing:
        theirs = [_theirs(names, k) or k for k in missing]
        hint = near(theirs[0], strange, 1)
        raise Bad(f"{folder}: {len(missing)} tensors are missing, the first {theirs[0]}{hint}")
    if strange:
        raise Bad(f"{folder}: {len(strange)} tensors are not known to {arch.family}, the first {strange[0]}")
    ordered = {}
    for k in expected:  # one by one, so that a device holds one in float32 at a time
        a = to_device(np.ascontiguousarray(params.pop(k)))
        ordered[k] = converted(k, a, dtype) if half else a
    return Model(arch, ordered, names, config, spare)


def _ours(names: Names, key: str, arch: Arch) -> str | None:
    """Our name of a tensor, also where the file leaves the family's prefix out, as bare base models do."""
    module, _, leaf = key.rpartition(".")
    prefix = getattr(_family(arch.family), "PREFIX", {}).get(arch.family, "")
    for m, k in ((module, key), (prefix + module, prefix + key)):
        if (bare := names.ours(k)) is not None:
            return bare
        if (found := names.ours(m)) is not None:
            return f"{found}.{leaf}"
    return None


def _theirs(names: Names, ours: str) -> str | None:
    if (bare := names.theirs(ours)) is not None:
        return bare
    module, _, leaf = ours.rpartition(".")
    found = names.theirs(module)
    return f"{found}.{leaf}" if found else None


def our_layout(names: Names, ours: str, a: Any) -> Any:
    """A tensor of a file as we hold the parameter of this name."""
    if ours.endswith(".weight") and names.is_transposed(ours.removesuffix(".weight")):
        return a.T
    if ours == "embed.patch.weight":
        return a.reshape(a.shape[0], -1)
    if ours == "embed.positions.weight" and a.ndim == 3:
        return a[0]
    return a


def their_layout(names: Names, ours: str, a: Any, arch: Arch) -> Any:
    """A parameter of ours as a file holds it."""
    if ours.endswith(".weight") and names.is_transposed(ours.removesuffix(".weight")):
        return a.T
    if ours == "embed.patch.weight":
        return a.reshape(a.shape[0], arch.channels, arch.patch, arch.patch)
    if ours == "embed.positions.weight" and arch.patch:
        return a[None]
    return a


def _ignorable(key: str, ours: str | None, arch: Arch) -> bool:
    """Buffers of old checkpoints and tied copies."""
    if key.endswith((".position_ids", ".inv_freq", ".attn.bias", ".attn.masked_bias")):
        return True
    if ours is None:
        return key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight") or key.endswith("predictions.bias")
    return arch.tied and ours == "head.weight"


def with_head(model: Model, head: str, labels: int = 0, seed: int = 0) -> Model:
    """The same body with another head: "classify" or "tokens" with `labels` classes, "none", or one that the file held too.

    What the checkpoint or the model has is taken; a classifier that is not there starts at zero, the dense layer or pooler
    in front of it at N(0, 0.02²), as in transformers. What the new head does not use goes to `Model.spare`.
    Raises `Bad` for a head that cannot be made, and for classes that are none.
    """
    from minipeft.checkpoints.saving import their_tensors
    from minipeft.model.transformer import shapes

    if head in CLASSIFIERS and labels < 1:
        raise Bad(f"head {head!r}: expected at least one label, found {labels}")
    arch = headed(model.arch, head, labels)
    names = family_names(arch)
    held = {ours: our_layout(names, ours, a) for key, a in model.spare.items() if (ours := _ours(names, key, arch))}
    held |= model.params
    rng = np.random.default_rng(seed)

    def fresh(name: str, shape: tuple[int, ...]) -> Any:
        if not name.startswith(("score.", "pooler.")):
            raise Bad(f"head {head!r}: this {arch.family} checkpoint has no {_theirs(names, name) or name}")
        zero = name.endswith(".bias") or name == "score.weight"
        return np.zeros(shape) if zero else 0.02 * rng.standard_normal(shape)

    params = {}
    for name, shape in shapes(arch).items():
        fits = name in held and tuple(held[name].shape) == shape
        params[name] = (
            held[name]
            if name in model.params and fits
            else to_device(np.ascontiguousarray(held[name] if fits else fresh(name, shape)).astype(model.dtype))
        )
    left = {k: W for k, W in model.params.items() if k not in params}
    spare = {k: a for k, a in model.spare.items() if _ours(names, k, arch) not in params}
    spare |= their_tensors(model, left)
    drawn = frozenset(
        name for name in params if name not in held or tuple(held[name].shape) != tuple(params[name].shape)
    )
    return dataclasses.replace(model, arch=arch, params=params, names=names, spare=spare, drawn=drawn)


def save_model(model: Model, folder: str | Path, config: dict[str, Any] | None = None) -> None:
    """Write a base model as a checkpoint folder that `load` and transformers read as the same function.

    `config` is the config.json it came with (default: `model.config`); what a change of the model made untrue in it is put
    right. What is held in bfloat16 is written so, and read back bit by bit; what is quantised is written as the numbers it
    stands for. Raises `Bad` for what no config.json of the family can say, before anything is written.
    """
    from minipeft.checkpoints.saving import write_model

    write_model(model if config is None else dataclasses.replace(model, config=config), Path(folder))
