"""The fuzzer of PEFT's adapters: `PYTHONPATH=. python tests/fuzz/peft_fuzz.py [TUNER …] [--draws N] [--seed S] [--shapes SHAPE …]`.

A drawn configuration is put by PEFT on a small drawn base, every trained number is moved, and it is saved. minipeft must read it and
compute the same, or refuse it with one line; and PEFT must read what minipeft saves of it, and compute the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import sys
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
RECORD = Path(__file__).parents[1] / "record"
sys.path.insert(0, str(RECORD))
import numpy as np  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import transformers as tf  # noqa: E402
from float64 import as_float64  # noqa: E402
from peft import PeftModel, get_peft_model  # noqa: E402
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # noqa: E402

from minipeft.adapted import Adapted  # noqa: E402
from minipeft.checkpoints import load  # noqa: E402
from minipeft.conformance.laws import K, sensitivity  # noqa: E402
from minipeft.errors import Bad  # noqa: E402
from minipeft.interop.peft.reading import load_peft  # noqa: E402
from minipeft.interop.peft.registry import specs  # noqa: E402
from minipeft.interop.peft.writing import save_peft  # noqa: E402
from minipeft.model.batch import batch  # noqa: E402

SHAPES = ("llama", "gpt2", "bert", "t5", "vit")
CLASSES = dict(  # the first is the usual one
    llama=(tf.LlamaForCausalLM, tf.LlamaForSequenceClassification, tf.LlamaForTokenClassification),
    gpt2=(tf.GPT2LMHeadModel, tf.GPT2ForSequenceClassification, tf.GPT2ForTokenClassification),
    bert=(tf.BertForSequenceClassification, tf.BertForMaskedLM, tf.BertForTokenClassification),
    t5=(tf.T5ForConditionalGeneration,),
    vit=(tf.ViTForImageClassification,),
)
TASKS = dict(lm="CAUSAL_LM", classify="SEQ_CLS", tokens="TOKEN_CLS")  # by the base's head
EVERY_TASK = (None, "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "FEATURE_EXTRACTION", "QUESTION_ANS")
TEXT = SHAPES[:4]  # PEFT asks for the vocabulary of what it puts virtual tokens before
FITS = dict(  # where PEFT has these: its own errors are those of a base that it does not know
    ADAPTION_PROMPT=("llama", "gpt2"), SHADOW=("llama", "gpt2", "bert"), CPT=("llama", "gpt2"), CARTRIDGE=TEXT,
    MULTITASK_PROMPT_TUNING=TEXT, P_TUNING=TEXT, PREFIX_TUNING=TEXT, PROMPT_TUNING=TEXT,
)  # fmt: skip
BY_TASK = ("POLY", "MULTITASK_PROMPT_TUNING")
TUNERS = sorted({s.peft_type for s in specs().values()} - {"XLORA"})  # X-LoRA is of adapters that are trained before
VOCAB = 37
INEXACT = {
    "TINYLORA": "torch draws projections that a file lacks in float32, and we within its last place; decompositions are in float64 here",
    "OSF": "its float32 is float64 here, but two libraries' singular vectors differ by rounding over the gap of the singular values",
    "FROD": "U is solved of V again, whose condition is not among what is measured",
    "OFT": "PEFT measures coft's rotation against a radius in float32",
}
WHERE = {"TINYLORA": ("save_projection", False)}  # of INEXACT, those with this value of a field alone
TRIES = 60  # configurations that PEFT itself refuses, before a draw is given up
WHOLE_NUMBERS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 0, -1, 7)
NUMBERS = (0.0, 0.25, 0.5, 0.1, 1.0, 1.5, 3.0, 0.9)


@dataclasses.dataclass
class Draw:
    """What was drawn, and what became of it: equal, float32, refused, back refused, or a defect."""

    tuner: str
    seed: int
    shape: str
    fields: dict[str, Any]
    outcome: str = ""
    detail: str = ""


# --- bases ---------------------------------------------------------------------------------------------------------------


def sizes(shape: str, rng: np.random.Generator) -> Any:
    """A configuration of transformers."""
    heads, groups, per = (int(rng.choice(of)) for of in ((2, 4), (1, 2), (2, 4, 6)))
    width, inner, layers = heads * per, int(rng.choice((16, 18, 21, 24, 32))), int(rng.choice((1, 2, 3)))
    common = dict(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False)
    text = common | dict(num_labels=3)
    if shape == "llama":
        biased = bool(rng.integers(2))
        return tf.LlamaConfig(
            **text, hidden_size=width + heads * 2 * int(rng.integers(2)), intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads // groups, max_position_embeddings=40, attention_bias=biased,
            mlp_bias=biased, tie_word_embeddings=bool(rng.integers(2)),
        )  # fmt: skip
    if shape == "gpt2":
        inner = None if rng.integers(2) else inner
        return tf.GPT2Config(**text, n_embd=width, n_layer=layers, n_head=heads, n_inner=inner, n_positions=40)
    own = dict(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, num_labels=3
    )
    if shape == "bert":
        return tf.BertConfig(**common, **own, max_position_embeddings=40)
    if shape == "vit":
        patch, channels = int(rng.choice((1, 2, 3, 4))), int(rng.choice((1, 3, 4, 6)))
        image = patch * int(rng.choice((1, 2, 3)))
        return tf.ViTConfig(**own, image_size=image, patch_size=patch, num_channels=channels)
    return tf.T5Config(
        **common, d_model=width, d_kv=per + int(rng.integers(2)), num_heads=heads, d_ff=inner, num_layers=layers,
        num_decoder_layers=layers, decoder_start_token_id=0, relative_attention_num_buckets=8,
        relative_attention_max_distance=12, tie_word_embeddings=bool(rng.integers(2)),
    )  # fmt: skip


def noise(named: Any, size: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(named, key=lambda item: item[0]):
            p.add_(size * torch.randn(p.shape, generator=rng).to(p.dtype))


tf.utils.logging.disable_progress_bar()
KEPT = tempfile.TemporaryDirectory(prefix="peft-fuzz-")


@cache
def base(shape: str, i: int) -> tuple[Any, Path]:
    """The i-th base of a shape, saved; the last have other heads."""
    cls = CLASSES[shape][max(i - 3, 0) % len(CLASSES[shape])]
    torch.manual_seed(i)
    model = cls(sizes(shape, np.random.default_rng([i, SHAPES.index(shape)])))
    noise(model.named_parameters(), 0.2, i)
    folder = Path(KEPT.name) / f"{shape}{i}"
    model.save_pretrained(folder)
    return cls, folder


@cache
def ours(shape: str, i: int) -> Any:
    return load(base(shape, i)[1], np.float64)


@cache
def plain(shape: str, i: int) -> np.ndarray:
    """What the base computes."""
    return Adapted(ours(shape, i)).logits(batch(**given(shape, i, tasks=False)))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(abs(a - b).max() < 1e-6)


def theirs(shape: str, i: int, dtype: torch.dtype) -> Any:
    cls, folder = base(shape, i)
    model = cls.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model.config.use_cache = False
    return model.eval()


def given(shape: str, i: int, tasks: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    if shape == "vit":
        arch = ours(shape, i).arch
        pixels = rng.standard_normal((2, arch.channels, arch.image, arch.image))
        return dict(pixel_values=pixels, labels=np.array([2, 1]))
    ids = rng.integers(3, VOCAB, (2, 6))
    out = dict(input_ids=ids, attention_mask=np.ones_like(ids), labels=ids)
    if shape == "t5":
        out["labels"] = ids[:, :4]
    if (head := ours(shape, i).arch.head) in ("classify", "tokens"):
        out["labels"] = np.array([2, 0]) if head == "classify" else ids % 3
    return out | (dict(task_ids=np.array([1, 0])) if tasks else {})


# --- configurations --------------------------------------------------------------------------------------------------------


def modules_of(model: Any) -> dict[str, list[str]]:
    """Names of modules, by what they are."""
    out: dict[str, list[str]] = dict(linear=[], patches=[], table=[], norm=[], head=[], layer=[])
    for name, m in model.named_modules():
        kind = type(m).__name__
        if name.rpartition(".")[2] in ("lm_head", "classifier", "score"):
            out["head"].append(name)
        elif re.fullmatch(r".*\.\d+", name):
            out["layer"].append(name)
        elif kind in ("Linear", "Conv1D"):
            out["linear"].append(name)
        elif kind == "Conv2d":
            out["patches"].append(name)
        elif kind == "Embedding":
            out["table"].append(name)
        elif "Norm" in kind:
            out["norm"].append(name)
    return out


def named(rng: np.random.Generator, names: list[str]) -> Any:
    """Some modules: by their endings, in whole, or by an expression."""
    endings = sorted({re.sub(r".*\.\d+\.", "", n) for n in names} | {n.rpartition(".")[2] for n in names})
    how = rng.random()
    some = [str(x) for x in rng.choice(endings, size=min(len(endings), int(rng.integers(1, 4))), replace=False)]
    if how < 0.15:
        return [str(x) for x in rng.choice(names, size=min(len(names), int(rng.integers(1, 4))), replace=False)]
    if how < 0.3:
        return rf".*\.({'|'.join(map(re.escape, some))})"
    return some


def targets(rng: np.random.Generator, tuner: str, at: dict[str, list[str]]) -> Any:
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
    names = at["linear"] + (at["table"] if rng.random() < 0.15 else []) + (at["head"] if rng.random() < 0.1 else [])
    found = named(rng, names or at["head"])
    if at["patches"] and isinstance(found, list) and rng.random() < 0.5:
        found += ["projection"]
    return found


def value(rng: np.random.Generator, kind: Any, default: Any) -> Any:
    """One that the field may have, of the type that PEFT gives it."""
    if isinstance(default, bool) or (kind.holds(True) and not kind.holds(1)):
        return bool(rng.integers(2))
    if m := re.match(r"one of (.*)", kind.words):
        options = [o for o in re.findall(r"'([^']*)'", m.group(1)) if kind.holds(o)]
        return str(rng.choice(options)) if options else default
    pool: tuple[Any, ...] = (
        WHOLE_NUMBERS if isinstance(default, int) or not kind.holds(0.25) else NUMBERS + WHOLE_NUMBERS
    )
    pool = tuple(v for v in pool if kind.holds(v)) + ((None,) if kind.holds(None) else ())
    return pool[rng.integers(min(len(pool), 9))] if pool else default


def pattern(rng: np.random.Generator, kind: Any, names: list[str]) -> dict[str, Any]:
    pool = [v for v in (1, 2, 3, 4, 6) if kind.holds({"a": v})]
    keys = named(rng, names)
    return {k: int(rng.choice(pool)) for k in ([keys] if isinstance(keys, str) else keys[:2])}


def parameters(rng: np.random.Generator, at: dict[str, list[str]]) -> dict[str, Any]:
    """Some weights by their own names, beside modules or alone; seldom one of no matrix."""
    names = at["linear"] + at["table"] + at["head"] + (at["patches"] + at["norm"] if rng.random() < 0.1 else [])
    some = named(rng, names)
    some = [str(x) for x in rng.choice(names, 2)] if isinstance(some, str) else some
    return dict(target_parameters=[f"{n}.weight" for n in some]) | (
        {} if rng.random() < 0.3 else dict(target_modules=[])
    )


def tied(rng: np.random.Generator, at: dict[str, list[str]]) -> dict[str, Any]:
    """A token table, its head or both, adapted or saved whole, and tied."""
    names = (at["table"][:1], at["head"], at["table"][:1] + at["head"])[rng.integers(3)]
    tables = [n.rpartition(".")[2] for n in names]
    where = dict(modules_to_save=tables) if rng.random() < 0.3 else dict(target_modules=tables)
    if "target_modules" in where and (
        rng.random() < 0.4 or "transformer.wte" in at["table"]
    ):  # deviations.md#peft-tied-names
        where = dict(target_modules=rf"(.*\.)?({'|'.join([*tables, 'q_proj', 'c_fc', 'wi'])})")
    return dict(ensure_weight_tying=True) | where


def task(rng: np.random.Generator, shape: str, i: int) -> str | None:
    """What the base is for, or seldom something else that PEFT may take it for."""
    usual = "SEQ_2_SEQ_LM" if shape == "t5" else None if shape == "vit" else TASKS.get(ours(shape, i).arch.head)
    return EVERY_TASK[rng.integers(len(EVERY_TASK))] if rng.random() < 0.1 else usual


def drawn_fields(rng: np.random.Generator, tuner: str, shape: str, i: int) -> dict[str, Any]:
    """A configuration of the tuner, which PEFT may refuse."""
    at = modules_of(theirs(shape, i, torch.float32))
    known: dict[str, Any] = {}
    for spec in specs().values():
        if spec.peft_type == tuner:
            known |= spec.known
    fields = {f.name: f for f in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[tuner])}
    out: dict[str, Any] = dict(task_type=task(rng, shape, i))
    chance = lambda p: rng.random() < p
    for name, f in known.items():
        if name not in fields or f.fate == "refused":
            continue
        default = fields[name].default
        if name == "target_modules":
            out[name] = targets(rng, tuner, at)
        elif name == "target_parameters":
            if chance(0.15):
                out |= parameters(rng, at)
        elif name == "ensure_weight_tying":
            if chance(0.1):
                out |= tied(rng, at)
        elif name == "exclude_modules":
            if chance(0.2):
                out[name] = named(rng, at["linear"] + at["head"])
        elif name in ("layers_to_transform", "layers_pattern"):
            if name == "layers_to_transform" and chance(0.15):
                out[name] = [0] if chance(0.5) else 0
                if chance(0.3):
                    out["layers_pattern"] = dict(llama="layers", gpt2="h", bert="layer", t5="block", vit="layer")[shape]
        elif name == "modules_to_save":
            if chance(0.2):
                out[name] = [str(rng.choice([n.rpartition(".")[2] for n in at["norm"] + at["head"]]))]
        elif name == "bias":
            if chance(0.4):
                out[name] = str(rng.choice(["all", f"{tuner.lower()}_only"]))
        elif name == "trainable_token_indices":
            if chance(0.1):
                out[name] = [1, 5]
        elif name == "feedforward_modules":
            mods = out.get("target_modules")
            out[name] = [str(rng.choice(mods))] if isinstance(mods, list) and chance(0.7) else []
        elif name in ("token_indices", "cpt_token_ids", "cpt_tokens_type_mask"):
            n = out.get("num_virtual_tokens", 4)
            out[name] = (
                [1, 6, 11]
                if name == "token_indices"
                else [int(x) for x in rng.integers(1, 5 if "mask" in name else VOCAB, n)]
            )
        elif name in ("num_virtual_tokens", "adapter_len"):
            out[name] = int(rng.integers(1, 6))
        elif name == "adapter_layers":
            out[name] = int(rng.integers(1, 3))
        elif name in ("num_tasks", "n_tasks"):
            out[name] = int(rng.integers(2, 4))
        elif name == "prefix_projection" or name == "encoder_hidden_size":
            out[name] = bool(rng.integers(2)) if name == "prefix_projection" else 6
        elif name.endswith("_pattern"):
            if chance(0.3) and f.kind.holds({"a": 1}):
                out[name] = pattern(rng, f.kind, at["linear"])
        elif name == "init_lora_weights":
            if chance(0.3) and tuner == "LORA":
                out[name] = str(rng.choice(["gaussian", "pissa", "olora", "orthogonal", "mica"]))
        elif name in OWN.get(tuner, {}):
            if chance(0.15):
                out[name] = OWN[tuner][name](rng)
        elif f.kind.words == "anything" or name in FIXED:
            continue
        elif name in ("r", "init_r", "num_ranks", "block_size", "vector_length", "group_size") or chance(0.5):
            out[name] = value(rng, f.kind, default)
    if tuner == "POLY":
        out["r"] = 4
    if tuner == "OFT":  # of which PEFT takes one
        out |= dict(oft_block_size=0) if chance(0.5) else dict(r=0)
    if tuner == "ADALORA":
        out |= dict(total_step=100, tinit=2, tfinal=3)
    return out


FIXED = (
    "task_type", "fan_in_fan_out", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers", "use_qalora",
    "qalora_group_size", "arrow_config", "sample_at_inference",
)  # fmt: skip
OWN: dict[str, Any] = {
    "LORA": {
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
}


# --- what becomes of it ----------------------------------------------------------------------------------------------------


@cache
def wide() -> tuple[Any, ...]:
    """PEFT's modules that cast to float32; the recorder's files of methods also give what is found in float32 its signs."""
    found: list[Any] = []
    own: set[str] = set()
    for path in sorted((RECORD / "peft").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"drawn_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if hasattr(module, "DOWNCASTING"):  # what PEFT finds in float32 and does not save stays as it was
            found += module.DOWNCASTING
            own.add(path.stem)
    found += [import_module(m) for name, spec in specs().items() if name not in own for m in spec.wide]
    return tuple(dict.fromkeys(found))


def logits_of_peft(shape: str, i: int, folder: Path, values: dict[str, np.ndarray]) -> np.ndarray:
    """What PEFT computes with what lies in a folder, in float64."""
    torch.manual_seed(1)
    with as_float64(*wide()):
        model = PeftModel.from_pretrained(theirs(shape, i, torch.float64), folder).double().eval()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.no_grad():
                return model(**{k: torch.tensor(v) for k, v in values.items()}).logits.numpy()
        finally:
            torch.set_default_dtype(torch.float32)


def saved(tuner: str, shape: str, i: int, fields: dict[str, Any], seed: int, folder: Path) -> None:
    """PEFT's adapter, every trained number moved."""
    torch.manual_seed(seed)
    model = theirs(shape, i, torch.float32)
    model.name_or_path = model.config._name_or_path = ""
    model = get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[tuner](**fields)).eval()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not any(p.numel() for _, p in trained):
        raise ValueError("nothing is trained")
    noise(trained, 0.2, seed)
    model.save_pretrained(folder)


def judged(tuner: str, seed: int, shapes: tuple[str, ...] = ()) -> Draw | None:
    """One draw that PEFT computes, on a base of one of these shapes, or None if PEFT refused all of them."""
    rng = np.random.default_rng([seed, zlib.crc32(tuner.encode())])
    wide = tuner in INEXACT or any(t.inexact for s in specs().values() if s.peft_type == tuner for t in s.trials)
    for _ in range(TRIES):
        shape, i = str(rng.choice(shapes or FITS.get(tuner, SHAPES))), int(rng.integers(6))
        fields = drawn_fields(rng, tuner, shape, i)
        name, value = WHERE.get(tuner, ("", None))
        inexact = wide and fields.get(name) == value
        values = given(shape, i, tuner in BY_TASK)
        out = Draw(tuner, seed, f"{shape}{i}", fields)
        with tempfile.TemporaryDirectory() as where:
            folder, back = Path(where) / "theirs", Path(where) / "ours"
            try:
                saved(tuner, shape, i, fields, seed, folder)
                want = logits_of_peft(shape, i, folder, values)
            except Exception:  # whatever PEFT says of what it cannot do
                continue
            if not np.isfinite(want).all() or same(want, plain(shape, i)):  # nothing is changed
                continue
            out.outcome, out.detail = told(out, folder, back, want, values, inexact)
        return out
    return None


def told(out: Draw, folder: Path, back: Path, want: np.ndarray, values: Any, inexact: bool) -> tuple[str, str]:
    """What minipeft makes of an adapter with which PEFT computes `want`."""
    shape, i = out.shape[:-1], int(out.shape[-1])
    step = "read"
    try:
        adapted = load_peft(ours(shape, i), folder)
        step = "compute"
        asked = batch(**values)
        got = adapted.logits(asked)
        step = "write"
        save_peft(adapted, back)
    except Bad as why:
        line = str(why).replace(str(folder), "").replace(str(back), "")
        if "\n" in line:
            return "defect", f"not one line: {line!r}"
        return ("refused" if step != "write" else "back refused"), line
    except Exception as why:
        at = [f for f in traceback.extract_tb(why.__traceback__) if "/minipeft/" in f.filename or "fuzz" in f.filename][
            -1
        ]
        return "defect", f"{step}: {type(why).__name__} at {at.filename.rpartition('/')[2]}:{at.lineno}: {why}"[:300]
    how = compared(adapted, asked, got, want, inexact)
    if how[0] == "defect":
        return how
    try:
        again = logits_of_peft(shape, i, back, values)
    except Exception as why:
        return "defect", f"PEFT cannot read what was written: {type(why).__name__}: {str(why)[:250]}"
    if (there := compared(adapted, asked, got, again, inexact))[0] == "defect":
        return "defect", f"written: {there[1]}"
    return how


def compared(adapted: Any, asked: Any, got: np.ndarray, want: np.ndarray, inexact: bool) -> tuple[str, str]:
    if got.shape != want.shape:
        return "defect", f"logits of shape {got.shape}, PEFT's of {want.shape}"
    off = abs(got - want).max()
    if off <= K * 2.0**-53 * abs(want).max():
        return "equal", ""
    arrays = {k: v for k, v in adapted.adapters[0].arrays.items() if v.dtype.kind == "f"}
    cond = sensitivity(lambda m, _: Adapted(m, adapted.adapters).logits(asked), adapted.model, arrays)
    if off <= K * 2.0**-53 * cond:
        return "equal", ""
    if inexact and off <= K * 2.0**-24 * cond:
        return "float32", ""
    return "defect", f"differs by {off:.1e} where {K * 2.0**-53 * cond:.1e} may be"


def run(tuners: Any, draws: int, seed: int = 0, shapes: tuple[str, ...] = ()) -> Iterator[Draw]:
    """The draws, one tuner after another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        for tuner in tuners:
            for k in range(draws):
                if found := judged(tuner, seed + k, shapes):
                    yield found


def table(found: list[Draw]) -> str:
    """How many of each outcome by tuner, and what was refused why."""
    kinds = ("equal", "float32", "refused", "back refused", "defect")
    lines = [f"| tuner | drawn | {' | '.join(kinds)} |", "|---" * (len(kinds) + 2) + "|"]
    for tuner in sorted({d.tuner for d in found}):
        own = Counter(d.outcome for d in found if d.tuner == tuner)
        lines.append(f"| {tuner} | {sum(own.values())} | " + " | ".join(str(own[k]) for k in kinds) + " |")
    why = Counter((d.tuner, d.outcome, re.sub(r"\d+", "#", d.detail)[:170]) for d in found if "refused" in d.outcome)
    lines += [f"{n:4} × {tuner} {how}: {line}" for (tuner, how, line), n in sorted(why.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tuners", nargs="*")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=(), help="bases of these alone")
    options = parser.parse_args()
    every = []
    for d in run(options.tuners or TUNERS, options.draws, options.seed, tuple(options.shapes)):
        every.append(d)
        if d.outcome == "defect":
            print("DEFECT", d.tuner, d.seed, d.shape, d.fields, "\n      ", d.detail, flush=True)
    print(table(every))
