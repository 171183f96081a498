"""Other people's files and ours: loading base checkpoints, reading and writing adapters."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.engine.backend import to_device, to_host
from minipeft.engine.bfloat16 import Bfloat16, widened
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
        arch,
        family=config["model_type"],
        head=head,
        labels=labels if head in ("classify", "tokens") else 0,
        pad_id=config.get("pad_token_id"),
        eos_id=eos[0] if isinstance(eos, list) else eos,
        start_id=config.get("decoder_start_token_id"),
    )


def load(folder: str | Path, dtype: Any = None) -> Model:
    """A base model from a Hugging Face checkpoint folder (config.json and safetensors, sharded or not).

    Half-precision weights are widened to float32 unless `dtype` says otherwise: a type, or "bfloat16" as in
    `Model.astype`. Weights stored as (in, out) and patch convolutions are put right here. Raises `Bad`, in one line,
    for a type of no floating-point numbers, a missing or unsupported file, missing, unexpected or misshaped tensors, and NaN.
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
    strange = []
    for key, a in tensors.items():
        module, _, leaf = key.rpartition(".")
        ours = _ours(names, key, module, leaf, arch)
        if ours is None or ours not in expected:
            if not _ignorable(key, ours, arch):
                strange.append(key)
            continue
        if leaf == "weight" and names.is_transposed(ours.removesuffix(".weight")):
            a = a.T
        if ours == "embed.patch.weight":
            a = a.reshape(a.shape[0], -1)
        if ours == "embed.positions.weight" and a.ndim == 3:
            a = a[0]
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
    return Model(arch, ordered, names)


def _ours(names: Names, key: str, module: str, leaf: str, arch: Arch) -> str | None:
    """Our name of a tensor, also where the file leaves the family's prefix out, as bare base models do."""
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


def _ignorable(key: str, ours: str | None, arch: Arch) -> bool:
    """Buffers of old checkpoints, tied copies, and the pooler of a model that has no use for one."""
    if key.endswith((".position_ids", ".inv_freq", ".attn.bias", ".attn.masked_bias")):
        return True
    if ours is None:
        return key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight") or key.endswith("predictions.bias")
    return (arch.tied and ours == "head.weight") or ours.startswith("pooler.")


def save_model(model: Model, folder: str | Path, config: dict[str, Any]) -> None:
    """Write a base model as a checkpoint folder that `load` and transformers read. `config` is its config.json.

    What is held in bfloat16 is written so, and read back bit by bit; what is quantised is written as the numbers it
    stands for.
    """
    from minipeft.checkpoints.files import write_json, write_tensors

    names, tensors = model.names, {}
    for key, W in model.params.items():
        half = type(W) is Bfloat16
        a = to_host(W.values if half else widened(W))
        if key == "embed.patch.weight":
            a = a.reshape(a.shape[0], model.arch.channels, model.arch.patch, model.arch.patch)
        if key == "embed.positions.weight" and model.arch.patch:
            a = a[None]
        if names.is_transposed(key.removesuffix(".weight")):
            a = a.T
        theirs = _theirs(names, key)
        if theirs is None:
            raise Bad(f"{key} has no name in a {model.arch.family} checkpoint")
        tensors[theirs] = Bfloat16(a) if half else a
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", config | {"tie_word_embeddings": model.arch.tied})
