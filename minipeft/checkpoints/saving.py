"""Writing a base model as a checkpoint folder that `load` and transformers read as the same function.

A model that was changed may need other facts in its config.json than it came with: biases that were not there, a head that
is no longer the token table, another head, another type. `expressed` finds them, or says that the family's config.json has
no way to say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.checkpoints import (
    CLASSIFIERS,
    FAMILIES,
    HEADS,
    _family,
    _ours,
    _plain,
    _theirs,
    family_names,
    four_bits,
    read_arch,
    their_layout,
)
from minipeft.checkpoints.config import LAYERS, Fields
from minipeft.checkpoints.files import existing, read_header, read_json, write_json, write_tensors
from minipeft.engine.backend import to_device, to_host
from minipeft.engine.bfloat16 import Bfloat16, bfloat16
from minipeft.engine.weight import factor, form, widened
from minipeft.errors import Bad, near
from minipeft.model.arch import Arch
from minipeft.model.base import Model
from minipeft.model.parts import kind_of, shapes

BESIDE = tuple(f".{part}" for part in four_bits.BESIDE)  # what stands beside packed codes
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # in a file, in config.json
CLASSES = {
    "gpt2": "GPT2", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "bert": "Bert", "roberta": "Roberta",
    "t5": "T5", "vit": "ViT",
}  # fmt: skip
assert set(CLASSES) == set(FAMILIES)


def class_name(arch: Arch) -> str:
    """The class of transformers that computes this: LlamaForSequenceClassification."""
    own = {
        ("gpt2", "lm"): "LMHeadModel",
        ("bert", "lm"): "LMHeadModel",
        ("t5", "lm"): "ForConditionalGeneration",
        ("vit", "classify"): "ForImageClassification",
    }
    usual = {"lm": "ForCausalLM", "mlm": "ForMaskedLM", "classify": "ForSequenceClassification", "tokens": "ForTokenClassification", "none": "Model"}  # fmt: skip
    return CLASSES[arch.family] + own.get((arch.family, arch.head), usual[arch.head])


def expressed(model: Model, classes: Sequence[str] = ()) -> Model:
    """The same function as a model whose `arch` and `config` say what its parameters are, as `load` will read them.

    `classes` are the names of a classifier's labels. Raises `Bad` for what this family's config.json cannot say.
    """
    arch, params, config = model.arch, dict(model.params), dict(model.config)
    if not config:
        raise Bad("this model came from no checkpoint: give the config.json that says what it is")
    config.pop("quantization_config", None)  # what is quantised is written as the numbers it stands for
    arch, config = _with_biases(arch, params, config)
    if arch.head_scale != 1.0 and not arch.tied:  # nobody scales before a head of its own: it is part of the head
        params["head.weight"] = to_device(to_host(widened(params["head.weight"])) * arch.head_scale)
        arch = dataclasses.replace(arch, head_scale=1.0)
    if arch.predicts_tokens:
        config["tie_word_embeddings"] = arch.tied
    if arch.family == "t5":
        config["scale_decoder_outputs"] = arch.head_scale != 1.0
    config |= _head_facts(arch, config, classes)
    config |= _layer_facts(arch, config)
    arch = dataclasses.replace(arch, problem=config.get("problem_type") or "" if arch.head == "classify" else "")
    said = read_arch(config)
    loose = LOOSE if arch.predicts_tokens else (*LOOSE, "tied", "head_scale")  # of a head that is not there
    if arch.family == "t5":
        loose = (*loose, "tied")  # told by the file: its config.json says only whether the decoder's output is scaled
        said = dataclasses.replace(said, tied=arch.tied)
    for f in dataclasses.fields(Arch):
        if f.name not in loose and (found := getattr(said, f.name)) != (expected := getattr(arch, f.name)):
            raise Bad(f"config.json of a {arch.family} model says {f.name}={found!r}, the model has {expected!r}")
    if odd := sorted(set(shapes(said)) ^ set(shapes(arch))):
        raise Bad(f"config.json of a {arch.family} model and the model disagree about {odd[0]}")
    ordered = {name: params.pop(name) for name in shapes(arch) if name in params}
    if params:
        raise Bad(f"{next(iter(params))} has no place in a {arch.family} checkpoint with the head {arch.head!r}")
    if lost := [name for name in shapes(arch) if name not in ordered]:
        raise Bad(f"the model has no {lost[0]}, which a {arch.family} checkpoint needs")
    return dataclasses.replace(model, arch=arch, params=ordered, names=family_names(arch), config=config)


LOOSE = (
    "biased",
    "pad_id",
    "eos_ids",
    "fill_id",
    "start_id",
)  # compared by their shapes; ids that no pass over a batch reads


def _with_biases(arch: Arch, params: dict[str, Any], config: dict[str, Any]) -> tuple[Arch, dict[str, Any]]:
    """Facts under which the biases among `params` exist; what these facts bring beside them is 0."""
    switches: Mapping[str, tuple[str, ...]] = getattr(_family(arch.family), "BIASES", {}).get(arch.family, {})
    for name in params:
        if not name.endswith(".bias") or name in shapes(arch):
            continue
        part = name.removesuffix(".bias").rpartition(".")[2]
        switch = next((s for s, parts in switches.items() if part in parts and ".layers." in f".{name}"), None)
        if switch is None:
            theirs = _theirs(family_names(arch), name) or name
            raise Bad(
                f"{theirs}: config.json of a {arch.family} model cannot say that it has this bias"
                + (f", only {', '.join(switches)}" if switches else "")
            )
        config = config | {switch: True}
        arch = dataclasses.replace(arch, biased=tuple(dict.fromkeys((*arch.biased, *switches[switch]))))
    dtype = next(widened(v).dtype for v in params.values())
    for name, shape in shapes(arch).items():
        if name.endswith(".bias") and name not in params:
            params[name] = to_device(np.zeros(shape, dtype))
    return arch, config


def _layer_facts(arch: Arch, config: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of the layers, where there are others than it tells of."""
    said = read_arch(config)
    if (said.layers, said.window, said.full_layers) == (arch.layers, arch.window, arch.full_layers):
        return {}
    family = _family(arch.family)
    fields = family.FIELDS if isinstance(family.FIELDS, Fields) else family.FIELDS[arch.family]
    counts = [k for k in config if fields.read.get(fields.also.get(k, k)) is LAYERS]
    return dict.fromkeys(counts, arch.layers) | getattr(family, "of_layers", lambda arch: {})(arch)


def _head_facts(arch: Arch, config: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """What config.json says of the head."""
    facts: dict[str, Any] = {}
    named = (config.get("architectures") or ["Model"])[0]
    if next((h for end, h in HEADS.items() if named.endswith(end)), None) != arch.head or not config.get(
        "architectures"
    ):
        facts["architectures"] = [class_name(arch)]
    if arch.head not in CLASSIFIERS:
        return facts
    known = config.get("id2label") or {}
    if classes or (len(known) != arch.labels and (known or config.get("num_labels", 2) != arch.labels)):
        names = classes or [f"LABEL_{i}" for i in range(arch.labels)]
        if len(names) != arch.labels:
            raise Bad(f"expected names of {arch.labels} classes, found {len(names)}: {', '.join(names)}")
        facts |= {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
        if "num_labels" in config:
            facts["num_labels"] = arch.labels
    if "architectures" in facts and arch.head == "classify":
        facts["problem_type"] = "regression" if arch.labels == 1 else "single_label_classification"
    if arch.head == "classify" and arch.causal and config.get("pad_token_id") is None and arch.pad_id is not None:
        facts["pad_token_id"] = arch.pad_id  # transformers reads a row's last token that is no padding
    return facts


# --- types ------------------------------------------------------------------------------------------------------------


def stored_types(folder: str | Path, model: Model) -> dict[str, str]:
    """The floating-point type of every tensor in a checkpoint's files: by our name of a parameter, by theirs of the rest.

    Under "" stands the type of most numbers.
    """
    folder = existing(folder, "folder")
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = [single] if single.exists() else [folder / f for f in sorted(set(read_json(index)["weight_map"].values()))]
    out: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for file in files:
        header = {k: e for k, e in read_header(file).items() if k != "__metadata__" and not k.endswith(BESIDE)}
        for key, entry in _plain(header, folder).items():
            if (kind := TYPES.get(entry["dtype"])) is None:
                continue
            ours = _ours(model.names, key, model.arch)
            out[ours if ours is not None and ours in model.params else key] = kind
            sizes[kind] = sizes.get(kind, 0) + int(np.prod(entry["shape"]))
    return out | {"": max(sizes, key=lambda k: sizes[k])}


def in_type(W: Any, kind: str, what: str) -> Any:
    """An array in a type of files, each number rounded once. Raises `Bad` where a number is too large for it."""
    if form(W) == kind == "bfloat16":
        return factor(W)
    a = to_host(widened(W))
    if a.dtype.kind != "f":
        return a
    with np.errstate(over="ignore"):
        out = bfloat16(a) if kind == "bfloat16" else a.astype(kind)
    if not np.isfinite(widened(out)).all():
        raise Bad(f"{what} has numbers beyond the range of {kind}: largest {abs(a).max():.3g}; choose another --dtype")
    return out


def file_type(dtype: Any) -> str:
    """The name of a type that files may have. Raises `Bad`, with near misses, for another."""
    try:
        name = "bfloat16" if str(dtype) == "bfloat16" else np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in TYPES.values():
        raise Bad(f"dtype {dtype!r}: expected one of {', '.join(sorted(TYPES.values()))}{near(name, TYPES.values())}")
    return name


def types_of(model: Model, dtype: Any) -> dict[str, str]:
    """The types of a file in `dtype`, as `stored_types` has them; "bfloat16" as in `Model.astype`: matrices, all else float32."""
    if (name := file_type(dtype)) != "bfloat16":
        return {"": name}
    matrices = {k for k, W in model.params.items() if kind_of(k, tuple(W.shape)) in ("linear", "embedding")}
    matrices |= {k for k, a in model.spare.items() if len(a.shape) == 2}
    return {"": "float32"} | dict.fromkeys(matrices, "bfloat16")


def main_type(tensors: Mapping[str, Any]) -> str:
    """The floating-point type of most numbers."""
    sizes: dict[str, int] = {}
    for a in tensors.values():
        kind = form(a) or a.dtype.name
        if kind in TYPES.values():
            sizes[kind] = sizes.get(kind, 0) + int(np.prod(a.shape))
    return max(sizes, key=lambda k: sizes[k])


# --- writing ----------------------------------------------------------------------------------------------------------


def their_tensors(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a model under their names and in their layout, on the host."""
    tensors = {}
    for key, W in params.items():
        half = form(W) == "bfloat16"
        a = their_layout(model.names, key, to_host(factor(W).values if half else widened(W)), model.arch)
        theirs = _theirs(model.names, key)
        if theirs is None:
            raise Bad(f"{key} has no name in a {model.arch.family} checkpoint")
        tensors[theirs] = Bfloat16(a) if half else a
    if (
        "head.weight" in params and "head.bias" in params
    ):  # a head of its own reads the decoder's bias, a tied one the other
        tied = family_names(dataclasses.replace(model.arch, tied=True))
        tensors[str(_theirs(tied, "head.bias"))] = tensors[str(_theirs(model.names, "head.bias"))]
    return tensors


def whole_name(model: Model, key: str) -> str:
    """A spare tensor's name beside parameters that have the family's prefix, which bare base models leave out."""
    prefix = getattr(_family(model.arch.family), "PREFIX", {}).get(model.arch.family, "")
    module = key.rpartition(".")[0]
    known = {h: family_names(dataclasses.replace(model.arch, head=h)) for h in ("none", "mlm")}.values()
    bare = not any(n.ours(module) or n.ours(key) for n in known)
    return prefix + key if bare and any(n.ours(prefix + module) for n in known) else key


def _superseded(model: Model, key: str) -> bool:
    """Whether a spare tensor is of another classifier, in whose place there is one now."""
    own = model.names.theirs("score") if model.arch.head in CLASSIFIERS else None
    return own is not None and key.split(".")[0] == own.split(".")[0]


def write_model(
    model: Model, folder: Path, types: Mapping[str, str] | None = None, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a model's two files into a folder, in `types` as `stored_types` has them or as it is held.

    Returns the parameters that were written, by our names.
    """
    model = expressed(model, classes)
    params, spare = dict(model.params), {k: a for k, a in model.spare.items() if not _superseded(model, k)}
    if types is not None:
        usual = types[""]
        params = {k: in_type(W, types.get(k, usual), _theirs(model.names, k) or k) for k, W in params.items()}
        spare = {k: in_type(a, types.get(k, usual), k) for k, a in spare.items()}
    tensors = {whole_name(model, k): a for k, a in spare.items()} | their_tensors(model, params)
    kind = main_type(their_tensors(model, params))
    config = dict(model.config)
    keys = [k for k in ("dtype", "torch_dtype") if k in config] or ["torch_dtype"]
    config |= dict.fromkeys(keys, kind)  # transformers computes in the type that stands here
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", config)
    return params
