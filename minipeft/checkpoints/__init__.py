"""Other people's files and ours: loading base checkpoints, reading and writing adapters."""

from __future__ import annotations

import dataclasses
import importlib
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints.config import Fields, generation
from minipeft.engine.backend import to_device
from minipeft.engine.mapped import Mapped
from minipeft.engine.weight import form, quantised, widened
from minipeft.errors import Bad, near
from minipeft.model.arch import Arch
from minipeft.model.base import Model, converted, float_type
from minipeft.model.names import Names
from minipeft.model.parts import PATCHES, kind_of

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
    "DoubleHeadsModel": "lm",
    "ForConditionalGeneration": "lm",
    "ForMaskedLM": "mlm",
    "ForPreTraining": "mlm",
    "ForSequenceClassification": "classify",
    "ForImageClassification": "classify",
    "ForTokenClassification": "tokens",
    "Model": "none",
}  # end of the class name in config.json -> our head
CLASSIFIERS = ("classify", "tokens")
# a base held so by `load` -> how its linears are quantised
QUANTISED: dict[str, dict[str, Any]] = {
    "nf4": dict(code="nf4"),
    "nf4-double": dict(code="nf4", double=True),
    "fp4": dict(code="fp4"),
    "fp4-double": dict(code="fp4", double=True),
    "int8": dict(code="int8"),
}
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of torch.compile, FSDP, checkpointing
LEGACY = {"gamma": "weight", "beta": "bias"}  # what TensorFlow called the parameters of a layer norm


def _family(model_type: str) -> Any:
    if model_type not in FAMILIES:
        raise Bad(
            f"model_type {model_type!r} is not supported; expected one of {', '.join(FAMILIES)}{near(str(model_type), FAMILIES)}"
        )
    return importlib.import_module(f"minipeft.checkpoints.{FAMILIES[model_type]}")


@lru_cache
def family_names(arch: Arch) -> Names:
    """The bijection between our module names and this architecture's family."""
    family = _family(arch.family)
    table, transposed = family.table(arch)
    return Names(table, transposed, family.stored(arch) if hasattr(family, "stored") else None)


def read_arch(config: dict[str, Any], beside: dict[str, Any] | None = None) -> Arch:
    """The facts in a config.json and, where there is one, `beside` it a generation_config.json.

    Raises `Bad` for a family, head or setting that is not supported, and for values of another kind than expected.
    """
    if not isinstance(config.get("model_type"), str):
        raise Bad("config.json has no model_type: it is no transformers checkpoint")
    family = _family(config["model_type"])
    fields = family.FIELDS if isinstance(family.FIELDS, Fields) else family.FIELDS[config["model_type"]]
    values = fields.values(config)
    architecture = (values["architectures"] or ["Model"])[0]
    head = next((h for end, h in HEADS.items() if architecture.endswith(end)), None)
    if head is None:
        raise Bad(
            f"architecture {architecture!r} is not supported; expected a name that ends in one of {', '.join(HEADS)}"
        )
    arch = family.arch(values, head)
    labels = len(values["id2label"] or {}) or values["num_labels"] or 2
    problem = (values["problem_type"] or "") if head == "classify" else ""
    if labels == 1 and problem == "single_label_classification":
        raise Bad("config.json: problem_type='single_label_classification' with one label: expected at least two")
    return dataclasses.replace(
        headed(arch, head, labels), family=config["model_type"], problem=problem, **generation(values, config, beside)
    )


def headed(arch: Arch, head: str, labels: int = 0) -> Arch:
    """The facts of the same body with another head. A classifier of the last token has no bias, all others have."""
    biased = tuple(m for m in arch.biased if m != "score")
    if head == "tokens" or (head == "classify" and arch.pool != "last"):
        biased += ("score",)
    return dataclasses.replace(arch, head=head, labels=labels if head in CLASSIFIERS else 0, biased=biased)


def load(folder: str | Path, dtype: Any = None) -> Model:
    """A base model from a Hugging Face checkpoint folder (config.json and safetensors, sharded or not).

    Half-precision weights are widened to float32 unless `dtype` says otherwise: a type, or "bfloat16" as in
    `Model.astype`. A word of `QUANTISED` holds the linears that bitsandbytes would hold so in four bits or eight, all else in float32;
    what a file holds in four bits stays so in any type. Weights stored as (in, out) and patch convolutions are put right
    here. A large checkpoint is mapped into memory: it is read, and its numbers are checked, as they are used. Tensors that belong to another head than the configuration names are kept aside, in `Model.spare`. Raises `Bad`, in
    one line, for a type of no floating-point numbers, a missing or unsupported file, missing, unexpected or misshaped
    tensors, and NaN.
    """
    from minipeft.checkpoints.files import existing, read_folder, read_json
    from minipeft.checkpoints.four_bits import in_few_bits, read_packed
    from minipeft.checkpoints.mapped import is_large, map_tensors
    from minipeft.model.parts import shapes, tied

    how = QUANTISED.get(dtype) if isinstance(dtype, str) else None
    dtype = np.dtype(np.float32) if how is not None else None if dtype is None else float_type(dtype)
    half = str(dtype) == "bfloat16"
    large = is_large(*Path(folder).glob("*.safetensors"))
    config, tensors = read_folder(folder, map_tensors if large else None)
    place = existing(folder) / "generation_config.json"
    beside = read_json(place) if place.exists() else None
    if beside is not None and not isinstance(beside, dict):
        raise Bad(f"{place}: expected an object, found {type(beside).__name__}")
    arch = read_arch(config, beside)
    names = family_names(arch)

    if len(tensors) > (most := PER_PARAMETER * len(shapes(arch)) + MORE):
        raise Bad(
            f"{folder}: expected at most {most:,} tensors, as config.json tells of {arch.layers} layers, found {len(tensors):,}"
        )

    def transposed(key: str) -> bool:
        return names.is_transposed((_ours(names, key, arch) or "").removesuffix(".weight"))

    tensors = read_packed(config, _plain(tensors, folder), folder, transposed)
    tensors = _untied(tensors, names, arch, folder)
    if any(_ours(names, key, arch) in tied(arch) for key in tensors):
        arch = dataclasses.replace(arch, tied=False)  # the config says tied, the file says otherwise
        names = family_names(arch)
    expected = shapes(arch)
    params: dict[str, Any] = {}
    spare: dict[str, Any] = {}
    strange = []
    for key, a in tensors.items():
        ours = _ours(names, key, arch)
        if ours is None or ours not in expected:
            if _of_another_head(key, ours, arch):
                spare[key] = a
            elif not key.endswith(BUFFERS):
                strange.append(key)
            continue
        a = our_layout(names, ours, a)
        if tuple(a.shape) != expected[ours]:
            turned = "; it looks transposed" if tuple(a.shape[::-1]) == expected[ours] else ""
            raise Bad(f"{folder}: {key}: expected shape {expected[ours]}, found {tuple(a.shape)}{turned}")
        if a.dtype.kind != "f":
            raise Bad(f"{folder}: {key}: expected floating-point numbers, found {a.dtype}")
        if ours in params and ours != "head.bias" and not _equal(a, params[ours]):
            raise Bad(f"{folder}: {key} is there twice, under two names and with two values")
        if ours not in params or key.endswith("decoder.bias"):  # which is what transformers adds, if there are two
            params[ours] = a
    if "head.bias" in expected and "head.bias" not in params:  # of an untied head that has the tied one's bias
        for key in [k for k in spare if k in ("cls.predictions.bias", "lm_head.bias")]:
            params["head.bias"] = spare.pop(key)
    missing = [k for k in expected if k not in params]
    if missing:
        theirs = _theirs(names, missing[0]) or missing[0]
        raise Bad(f"{folder}: {len(missing)} tensors are missing, the first {theirs}{near(theirs, strange, 1)}")
    if strange:
        raise Bad(f"{folder}: {len(strange)} tensors are not known to {arch.family}, the first {strange[0]}")
    ordered = {}
    for k in expected:  # one by one, so that a device holds one in float32 at a time
        W = params.pop(k)
        if form(W):
            ordered[k] = W if half or dtype is None else W.astype(dtype)
            continue
        if isinstance(W, Mapped):  # is converted and checked when it is used
            wide = half and kind_of(k, expected[k]) in ("linear", "embedding")
            own = np.float32 if half or (dtype is None and W.dtype.itemsize < 4) else dtype
            ordered[k] = W.used_in("bfloat16" if wide else own)
            continue
        wanted = None if half else np.float32 if dtype is None and W.dtype.itemsize < 4 else dtype
        with np.errstate(over="ignore"):
            W = W if wanted is None else W.astype(wanted, copy=False)
        if not np.isfinite(W).all():
            raise Bad(f"{folder}: {_theirs(names, k)} has weights beyond the range of {W.dtype}")
        a = to_device(np.ascontiguousarray(W))
        ordered[k] = converted(k, a, dtype) if half else a
    if how is not None:
        ordered = in_few_bits(arch, ordered, how, getattr(_family(arch.family), "WIDE", ()))
    return Model(arch, ordered, names, config, spare, folder=Path(folder))


PER_PARAMETER, MORE = 8, 1000  # tensors of a file: six of a weight in four bits, and those of other heads
BUFFERS = (".position_ids", ".token_type_ids", ".inv_freq", ".attn.bias", ".attn.masked_bias")  # of old checkpoints


def _plain(tensors: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """The tensors without what wrappers put into their names, and with today's names of a layer norm's parameters."""
    out: dict[str, Any] = {}
    for key, a in tensors.items():
        words = [w for w in key.split(".") if w not in WRAPPERS] or [key]
        while words[0] == "module" and len(words) > 1:  # of data parallelism
            words = words[1:]
        if words[-1] in LEGACY and len(words) > 1 and words[-2].lower().endswith("layernorm"):
            words[-1] = LEGACY[words[-1]]
        plain = ".".join(words)
        if plain in out:
            raise Bad(f"{folder}: {plain} is there twice, once as {key}")
        out[plain] = a
    return out


def _untied(tensors: dict[str, Any], names: Names, arch: Arch, folder: str | Path) -> dict[str, Any]:
    """The tensors without copies of the token table. One that is the only one stands for the table, as in transformers.

    Raises `Bad` for a stack's table that is not the shared one; an output matrix that differs stays.
    """
    table = _theirs(names, "embed.tokens.weight")
    stacks = [
        k
        for k in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        if arch.encoder_layers and k in tensors
    ]
    heads = [k for k in tensors if arch.tied and _ours(names, k, arch) == "head.weight"]
    if table is None or not (stacks or heads):
        return tensors
    held = next((k for k in tensors if _ours(names, k, arch) == "embed.tokens.weight"), None)
    first = tensors[held or [*stacks, *heads][0]]
    out = {k: a for k, a in tensors.items() if k not in stacks} | ({} if held else {table: first})
    for key in [*stacks, *heads]:
        same = tensors[key].shape == first.shape and _equal(tensors[key], first)
        if key in stacks and not same:
            raise Bad(f"{folder}: {key} is not the shared token table, which is not supported")
        if key in heads and same:
            out.pop(key)
    return out


def _equal(a: Any, b: Any) -> bool:
    if tuple(a.shape) != tuple(b.shape):
        return False
    if isinstance(a, Mapped) and isinstance(b, Mapped) and a.bits == b.bits:
        a, b = a.source, b.source  # as they lie in the file, a thousand rows at a time
    else:
        a, b = widened(a), widened(b)
    return (
        all(bool((a[i : i + 1024] == b[i : i + 1024]).all()) for i in range(0, len(a), 1024))
        if a.ndim
        else bool(a == b)
    )


def _of_another_head(key: str, ours: str | None, arch: Arch) -> bool:
    """Whether a tensor that this head has not is one of another head's, a pooler's, or an older file's that nothing reads."""
    part = (ours or "").partition(".")[0]
    if (part == "head" and arch.predicts_tokens) or (part == "score" and arch.head in CLASSIFIERS):
        return False
    family = _family(arch.family)
    return any(
        f"{k}.".startswith(f"{p}.") for p in family.SPARE for k in (key, family.PREFIX.get(arch.family, "") + key)
    )


def _ours(names: Names, key: str, arch: Arch) -> str | None:
    """Our name of a tensor, also where the file leaves the family's prefix out, as bare base models do."""
    module, _, leaf = key.rpartition(".")
    prefix = _family(arch.family).PREFIX.get(arch.family, "")
    for m, k in ((module, key), (prefix + module, prefix + key)):
        if (bare := names.ours(k)) is not None:
            return bare
        if (found := names.ours(m)) is not None:
            return f"{found}.{leaf}"
    return None


def _theirs(names: Names, ours: str) -> str | None:
    """The name of our parameter in a file."""
    if (bare := names.stored(ours)) is not None:
        return bare
    module, _, leaf = ours.rpartition(".")
    found = names.stored(module)
    return f"{found}.{leaf}" if found else None


def our_layout(names: Names, ours: str, a: Any) -> Any:
    """A tensor of a file as we hold the parameter of this name; one that is quantised is held so already."""
    if quantised(a):
        return a
    if ours.endswith(".weight") and names.is_transposed(ours.removesuffix(".weight")):
        return a.T
    if ours == PATCHES and a.ndim == 4:
        return a.reshape(a.shape[0], math.prod(a.shape[1:]))
    if ours == "embed.positions.weight" and a.ndim == 3 and a.shape[0] == 1:
        return a.reshape(*a.shape[1:])
    return a


def their_layout(names: Names, ours: str, a: Any, arch: Arch) -> Any:
    """A parameter of ours as a file holds it."""
    if ours.endswith(".weight") and names.is_transposed(ours.removesuffix(".weight")):
        return a.T
    if ours == PATCHES:
        return a.reshape(a.shape[0], arch.channels, arch.patch, arch.patch)
    if ours == "embed.positions.weight" and arch.patch:
        return a[None]
    return a


def with_head(model: Model, head: str, labels: int = 0, seed: int = 0) -> Model:
    """The same body with another head: "classify" or "tokens" with `labels` classes, "none", or one that the file held too.

    What the checkpoint or the model has is taken; a classifier that is not there starts at zero, the dense layer or pooler
    in front of it at N(0, 0.02²), as in transformers. What the new head does not use goes to `Model.spare`.
    Raises `Bad` for a head that cannot be made, and for classes that are none.
    """
    from minipeft.checkpoints.saving import their_tensors
    from minipeft.model.parts import shapes

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


def save_model(model: Model, folder: str | Path, config: dict[str, Any] | None = None, dtype: Any = None) -> None:
    """Write a base model as a checkpoint folder that `load` and transformers read as the same function.

    `config` is the config.json it came with (default: `model.config`); what a change of the model made untrue in it is put
    right. What is held in bfloat16 is written so, and read back bit by bit; what is quantised is written as the numbers it
    stands for. `dtype` is another type to write, float16 too, in which nothing is computed. Raises `Bad` for what no
    config.json of the family can say, and for the folder that the model was read from or that of an adapter, before anything
    is written.
    """
    from minipeft.checkpoints.files import refuse_read
    from minipeft.checkpoints.saving import types_of, write_model

    refuse_read(folder, *([] if model.folder is None else [model.folder]))
    for name in ("adapter.json", "adapter_config.json"):
        if (Path(folder) / name).exists():
            raise Bad(f"{folder}: holds {name}, so it is an adapter; give another folder for a checkpoint")
    model = model if config is None else dataclasses.replace(model, config=config)
    write_model(model, Path(folder), None if dtype is None else types_of(model, dtype))
