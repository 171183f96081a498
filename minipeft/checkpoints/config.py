"""The fields of a config.json: each is read, known not to change what is computed, or named as not honoured.

A family declares its `Fields` once: what it reads, of which kind, and what transformers takes where it is absent; what may
have one value only, because nothing else is computed here; and what does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minipeft import limits
from minipeft.errors import Bad, near, note
from minipeft.shown import shortly

ACTS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "swish": "silu",
    **{
        name: name
        for name in (
            "relu", "silu", "tanh", "gelu_fast", "gelu_10", "quick_gelu", "mish", "hardswish", "leaky_relu", "relu2", "relu6",
            "sigmoid", "sqrtsoftplus", "linear",
        )
    },
}  # fmt: skip  # transformers' name of an activation function -> ours


def activation(name: str) -> str:
    """Our name of an activation function. Raises `Bad` for one that is not computed here."""
    if name not in ACTS:
        raise Bad(
            f"config.json: activation {shortly(name)} is not supported; expected one of {', '.join(sorted(ACTS))}{near(name, ACTS)}"
        )
    return ACTS[name]


# --- kinds of values ------------------------------------------------------------------------------------------------

NEEDED: Any = object()


@dataclass(frozen=True)
class Kind:
    """What a field may hold, and what it is where it is absent (`default`); null stands for the default None, or `null`."""

    expected: str
    fits: Callable[[Any], bool]
    default: Any = NEEDED
    null: bool = False

    def or_(self, default: Any, null: bool = False) -> Kind:
        """The same kind of a field that may be absent, or null too."""
        return replace(self, default=default, null=null or default is None)


def _whole(v: Any, least: int, most: int = limits.WHOLE) -> bool:
    return type(v) is int and least <= v <= most


def _number(v: Any) -> bool:
    return type(v) in (int, float) and LEAST <= abs(v) <= LARGEST  # so that no integer is too long to be asked


def _ids(v: Any) -> bool:
    if isinstance(v, list):
        return len(v) <= limits.NAMES and all(_whole(x, -1) for x in v)
    return _whole(v, -1)


def _labels(v: Any) -> bool:
    """From the number of a label to its name, which may be a number too."""
    return (
        isinstance(v, dict)
        and all(k.isdecimal() and len(k) < 10 and isinstance(x, str | int | float) for k, x in v.items())
        and len(set(map(int, v))) == len(v)
    )


LONG, MANY = 60, 20  # characters of a field and how many fields are named
LEAST, LARGEST = 1e-30, 1e30  # of what is computed with in float32
WHOLE = Kind("a whole number of at least 1", lambda v: _whole(v, 1))
COUNT = Kind("a whole number of at least 0", lambda v: _whole(v, 0))
LAYERS = Kind(f"a whole number in 0 … {limits.LAYERS:,}", lambda v: _whole(v, 0, limits.LAYERS))
STACK = Kind(f"a whole number in 1 … {limits.LAYERS:,}", lambda v: _whole(v, 1, limits.LAYERS))
POSITIVE = Kind("a number above 0", lambda v: _number(v) and v > 0)
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
TEXT = Kind("text", lambda v: isinstance(v, str))
TOKEN = Kind("a token id", lambda v: _whole(v, -1))
TOKENS = Kind("a token id or a list of them", _ids)
OBJECT = Kind("an object", lambda v: isinstance(v, dict))
LABELS = Kind("an object from numbers to the labels' names", _labels)
WORDS = Kind("a list of words", lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v))
SIZE = Kind(
    "a whole number of at least 1, or two that are equal",
    lambda v: _whole(v, 1) or (isinstance(v, list) and len(v) == 2 and v[0] == v[1] and _whole(v[0], 1)),
)


# --- what all families have -----------------------------------------------------------------------------------------

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")

READ = {
    "model_type": TEXT,
    "architectures": WORDS.or_(None),
    "id2label": LABELS.or_(None),
    "num_labels": COUNT.or_(None),
    "problem_type": Kind(f"one of {', '.join(PROBLEMS)}", lambda v: v in PROBLEMS).or_(None),
    "pad_token_id": TOKEN.or_(None),
    "eos_token_id": TOKENS.or_(None),
    "decoder_start_token_id": TOKEN.or_(None),
    "quantization_config": OBJECT.or_(None),
}
ONLY: dict[str, tuple] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "per_layer_config": ({},),
    "tie_last_hidden_states": (True, False),
}
IDLE = {
    "how the file was made, and for which libraries": """
        transformers_version dtype torch_dtype use_bfloat16 torchscript name_or_path gradient_checkpointing finetuning_task
        task_specific_params tf_legacy_loss output_past""",
    "names of labels, and tokens that nothing here looks at": """
        label2id tokenizer_class prefix bos_token_id sep_token_id cls_token_id mask_token_id unk_token_id""",
    "random, or only before training": "initializer_range initializer_factor",
    "what is handed out, what is kept, and in which pieces": """
        use_cache output_attentions output_hidden_states return_dict use_return_dict chunk_size_feed_forward attn_implementation
        experts_implementation""",
    "arguments of `generate`, or of searches that it has not; a file of their own says them today": """
        max_length min_length max_new_tokens do_sample early_stopping num_beams temperature top_k top_p typical_p min_p
        repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
        num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
        remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens epsilon_cutoff eta_cutoff
        encoder_repetition_penalty num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
        assistant_lookbehind target_lookbehind num_beam_groups diversity_penalty""",
}  # reason -> fields that do not change what is computed


@dataclass(frozen=True)
class Fields:
    """What a family makes of the fields of its config.json, beside what all families have."""

    read: dict[str, Kind]
    only: dict[str, tuple] = field(default_factory=dict)  # the values that are computed; null and absent are fine
    idle: Mapping[str, str] = field(default_factory=dict)  # reason -> fields that do not change what is computed
    also: Mapping[str, str] = field(default_factory=dict)  # another name of a field -> its name

    @property
    def names(self) -> set[str]:
        """Every field that is accounted for."""
        idle = {name for group in (*IDLE.values(), *self.idle.values()) for name in group.split()}
        return {*READ, *ONLY, *self.read, *self.only, *self.also} | idle

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are read, those absent at what transformers takes for them.

        What nobody knows is named in a note. Raises `Bad`, in one line, for a field that is missing, of another kind than
        expected, or set to what is not computed here.
        """
        family = config["model_type"]
        given = {self.also.get(k, k): v for k, v in config.items() if k not in self.also or v is not None}
        found = {}
        kinds = READ | self.read
        for name, kind in kinds.items():
            value = given.get(name, kind.default)
            if value is NEEDED:
                raise Bad(f"config.json of a {family} model has no {name!r}")
            if not (value is None and kind.null) and not (name not in given or kind.fits(value)):
                raise Bad(f"config.json: {name}: expected {kind.expected}, found {shortly(value)}")
            found[name] = value
        for name, allowed in (ONLY | self.only).items():
            value = given.get(name)
            if (
                name not in kinds
                and value is not None
                and not any(value == a and type(value) is type(a) for a in allowed)
            ):
                only = " or ".join(map(repr, allowed)) or "nothing"
                raise Bad(f"config.json: {name}={shortly(value)} is not supported for {family}; expected {only}")
        if strange := sorted(k for k in config if k not in self.names and not k.startswith("_")):
            named = [k if k.isprintable() and len(k) < LONG else shortly(k) for k in strange[:MANY]]
            more = f" and {len(strange) - MANY} more" if len(strange) > MANY else ""
            note(f"config.json: not known to {family}, and not honoured: {', '.join(named)}{more}")
        return found


def divides(config: Mapping[str, Any], part: str, whole: str) -> None:
    """Raise `Bad` unless one field is a multiple of another."""
    if config[whole] % config[part]:
        raise Bad(f"config.json: {whole}={config[whole]} is no multiple of {part}={config[part]}")


# --- generation -----------------------------------------------------------------------------------------------------

GENERATION = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "num_beams": 1, "min_length": 0, "min_new_tokens": 0, "bad_words_ids": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "suppress_tokens": None, "begin_suppress_tokens": None, "sequence_bias": None,
    "exponential_decay_length_penalty": None, "guidance_scale": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "min_p": 0.0, "penalty_alpha": 0.0, "num_return_sequences": 1, "constraints": None, "stop_strings": None,
    "diversity_penalty": 0.0, "max_time": None,
}  # fmt: skip  # what changes which tokens come out, is no argument of `generate`, and the value that does nothing


def generation(
    values: Mapping[str, Any], config: Mapping[str, Any], beside: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The end tokens, what a row that has ended is filled with, and a decoder's first token: fields of an `Arch`.

    `beside` is generation_config.json, which counts alone where there is one; else what stands in `config` itself, as in
    transformers, which takes no end token where none is named. `values` are those of config.json with what is taken where a
    field is absent. Raises `Bad` for what are no tokens.
    """
    place = "config.json" if beside is None else "generation_config.json"
    of = config if beside is None else beside
    for name, kind in {"eos_token_id": TOKENS, "pad_token_id": TOKEN, "decoder_start_token_id": TOKEN}.items():
        if of.get(name) is not None and not kind.fits(of[name]):
            raise Bad(f"{place}: {name}: expected {kind.expected}, found {shortly(of[name])}")
    eos = of.get("eos_token_id")
    ends = tuple(x for x in (eos if isinstance(eos, list) else [] if eos is None else [eos]) if x >= 0)
    start, other = values["decoder_start_token_id"], of.get("decoder_start_token_id")
    if start is not None and other is not None and start != other:
        note(f"decoder_start_token_id: config.json says {start}, generation_config.json {other}; the first counts")
    if strange := sorted(k for k, v in GENERATION.items() if of.get(k, v) not in (v, None, [])):
        note(f"{place}: not honoured by generation: {', '.join(f'{k}={shortly(of[k])}' for k in strange)}")
    pad = _token(of.get("pad_token_id"))
    read = {
        "decoder_start_token_id": _token(other if start is None else start),
        "pad_token_id": _token(values["pad_token_id"]),
    }
    for name, token in read.items() if values.get("is_encoder_decoder") else ():  # they stand in its decoder's inputs
        if token is not None and token >= values["vocab_size"]:
            raise Bad(f"{name}: expected a token below vocab_size={values['vocab_size']}, found {token}")
    return dict(
        eos_ids=ends,
        fill_id=pad if pad is not None or not ends else ends[0],
        start_id=read["decoder_start_token_id"],
        pad_id=read["pad_token_id"],
    )


def _token(id_: int | None) -> int | None:
    return None if id_ is None or id_ < 0 else id_
