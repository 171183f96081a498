"""The fuzzer of PEFT's adapters: `PYTHONPATH=. python tests/fuzz/peft_fuzz.py [TUNER …] [--draws N] [--seed S] [--shapes SHAPE …] [--deep]`.

A drawn configuration (peft_configs) is put by PEFT on a small drawn base (peft_bases), every trained number is moved, and it is
saved. minipeft must read it and compute the same, or refuse it with one line; and PEFT must read what minipeft saves of it, and
compute the same. `--deep` also asks for the loss, every gradient, generated tokens, what float32 computes, and the merged model.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
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
from float64 import as_float64  # noqa: E402
from peft import PeftConfig, PeftModel, get_peft_model  # noqa: E402
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # noqa: E402
from peft_bases import SHAPES, SOME, family_of, given, modules_of, noise, ours, plain, theirs  # noqa: E402
from peft_computes import expected  # noqa: E402
from peft_configs import drawn_fields  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from minipeft.adapted import Adapted  # noqa: E402
from minipeft.conformance.laws import K, sensitivity  # noqa: E402
from minipeft.conformance.replay import replay  # noqa: E402
from minipeft.errors import Bad  # noqa: E402
from minipeft.interop.peft.reading import load_peft  # noqa: E402
from minipeft.interop.peft.registry import specs  # noqa: E402
from minipeft.interop.peft.writing import save_peft  # noqa: E402
from minipeft.merging import merge  # noqa: E402
from minipeft.model.batch import batch  # noqa: E402
from minipeft.model.generate import generate  # noqa: E402

DECODERS = ("llama", "gpt2", "mistral")
TEXT = tuple(s for s in SHAPES if s != "vit")
FITS = dict(  # where PEFT has these: its own errors are those of a base that it does not know
    ADAPTION_PROMPT=DECODERS, SHADOW=tuple(s for s in TEXT if family_of(s) in (*DECODERS, "bert")), CPT=DECODERS, CARTRIDGE=TEXT,
    MULTITASK_PROMPT_TUNING=TEXT, P_TUNING=TEXT, PREFIX_TUNING=TEXT, PROMPT_TUNING=TEXT,
    XLORA=("llama", "mistral", "llama-cls", "llama-tokens"),  # it looks for experts' modules below `model`
)  # fmt: skip
BY_TASK = ("POLY", "MULTITASK_PROMPT_TUNING")
TUNERS = sorted({s.peft_type for s in specs().values()})
INEXACT = {
    "TINYLORA": "torch draws projections that a file lacks in float32, and we within its last place; decompositions are in float64 here",
    "OSF": "its float32 is float64 here, but two libraries' singular vectors differ by rounding over the gap of the singular values",
    "FROD": "U is solved of V again, whose condition is not among what is measured",
    "OFT": "PEFT measures coft's rotation against a radius in float32",
    "WAVEFT": "PEFT's filters of db3 and of most symN are right to 10⁻¹² alone: deviations.md#peft-waveft-filters",
}
WHERE: dict[str, Any] = {  # of INEXACT, those with such fields alone
    "TINYLORA": lambda fields: fields.get("save_projection") is False,
    "WAVEFT": lambda fields: re.fullmatch("db3|sym.*", fields.get("wavelet_family") or ""),
}
KNOWN = ("C3A",)  # whose gradients are PEFT's mistake: deviations.md#peft-c3a-gradient
FAR = 1000  # of a gradient's roundings, of which six small moves of all numbers tell the size but roughly
MEANS = ("LILY",)  # over all positions, also those of padding on the left, which see none: torch has gradients for them
TRIES = 60  # configurations that PEFT itself refuses, before a draw is given up
DTYPES = (torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of a file
BY_RANK = ("VBLORA",)  # of which the largest numbers are taken; in half precision several are the same


@dataclasses.dataclass
class Draw:
    """What was drawn, and what became of it: equal, float32, refused, back refused, or a defect."""

    tuner: str
    seed: int
    shape: str
    i: int
    fields: dict[str, Any]
    padding: str = "none"
    dtype: torch.dtype = torch.float32
    outcome: str = ""
    detail: str = ""

    @property
    def values(self) -> dict[str, np.ndarray]:
        return given(self.shape, self.i, self.tuner in BY_TASK, self.padding)

    def __str__(self) -> str:
        return f"{self.tuner} {self.seed} on {self.shape}{self.i}, padding {self.padding}, {self.dtype}: {self.detail}\n   {self.fields}"


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(abs(a - b).max() < 1e-6)


# --- what PEFT makes of it -------------------------------------------------------------------------------------------------


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


def configured(folder: Path) -> Any:
    """The configuration in a folder; PEFT looks for experts from the working directory."""
    config = PeftConfig.from_pretrained(folder)
    if experts := getattr(config, "adapters", None):
        config.adapters = {k: str(folder / v) for k, v in experts.items()}
    return config


def computed_by_peft(d: Draw, folder: Path, tokens: int = 0) -> np.ndarray:
    """What PEFT computes with what lies in a folder, in float64: logits, or some tokens that it generates."""
    torch.manual_seed(1)
    with as_float64(*wide()):
        base, config = theirs(d.shape, d.i, torch.float64), configured(folder)
        model = PeftModel.from_pretrained(base, folder, config=config).double().eval()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.no_grad():
                values = {k: torch.tensor(v) for k, v in d.values.items()}
                labels = values.pop("labels")  # with some of which PEFT's AdaLoRA looks for what is trained
                if not tokens:
                    if d.shape == "t5":
                        values["decoder_input_ids"] = torch.nn.functional.pad(labels[:, :-1], (1, 0))
                    return model(**values).logits.numpy()
                made = model.generate(**values, max_new_tokens=tokens, do_sample=False, use_cache=True).numpy()
                return made[:, 1 if d.shape == "t5" else values["input_ids"].shape[1] :]
        finally:
            torch.set_default_dtype(torch.float32)


def saved(d: Draw, folder: Path) -> None:
    """PEFT's adapter, every trained number moved."""
    if d.tuner == "XLORA":
        return with_experts(d, folder)
    torch.manual_seed(d.seed)
    model = theirs(d.shape, d.i, torch.float32)
    model = get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[d.tuner](**d.fields)).eval()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not any(p.numel() for _, p in trained):
        raise ValueError("nothing is trained")
    noise(trained, 0.2, d.seed)
    model.save_pretrained(folder)
    if d.dtype != torch.float32:
        file = folder / "adapter_model.safetensors"
        cast = {k: v.to(d.dtype) if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(cast, file, {"format": "pt"})


def with_experts(d: Draw, folder: Path) -> None:
    """A gate over experts, of which PEFT saves neither whole: deviations.md#peft-xlora-names."""
    names = {}
    for k, own in enumerate(d.fields["experts"]):
        names[str(k)] = str(folder / str(k))
        saved(dataclasses.replace(d, tuner="LORA", seed=d.seed + k, fields=own), folder / str(k))
    base = theirs(d.shape, d.i, torch.float32)
    fields = {k: v for k, v in d.fields.items() if k != "experts"}
    torch.manual_seed(d.seed)
    model = get_peft_model(base, peft.XLoraConfig(hidden_size=base.config.hidden_size, adapters=names, **fields)).eval()
    gate = {k: p for k, p in model.named_parameters() if "internal_xlora_classifier" in k}
    noise(gate.items(), 0.2, d.seed)
    save_file({k: p.detach() for k, p in gate.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()} | dict(
        adapters={k: k for k in names}
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))


def drawn(tuner: str, seed: int, shapes: tuple[str, ...], folder: Path) -> tuple[Draw, np.ndarray] | None:
    """A draw that PEFT computes, saved to a folder, and its logits; None if PEFT refused all."""
    rng = np.random.default_rng([seed, zlib.crc32(tuner.encode())])
    for _ in range(TRIES):
        shape, i = str(rng.choice(shapes or FITS.get(tuner, SHAPES))), int(rng.integers(SOME))
        fields = drawn_fields(rng, tuner, shape, modules_of(shape, i))
        padding = (
            "none" if shape == "vit" else str(rng.choice(("none", "none", "right", "left")[: 3 + (tuner not in MEANS)]))
        )
        d = Draw(tuner, seed, shape, i, fields, padding, DTYPES[rng.integers(3 if tuner in BY_RANK else len(DTYPES))])
        try:
            saved(d, folder)
            want = computed_by_peft(d, folder)
        except Exception:  # whatever PEFT says of what it cannot do
            continue
        if np.isfinite(want).all() and not same(want, plain(shape, i, padding)):  # something is changed
            return d, want
    return None


# --- and minipeft ----------------------------------------------------------------------------------------------------------


def judged(tuner: str, seed: int, shapes: tuple[str, ...] = (), deep: bool = False) -> Draw | None:
    """One draw that PEFT computes, on a base of one of these shapes, or None if PEFT refused all of them."""
    with tempfile.TemporaryDirectory() as where:
        folder, back = Path(where) / "case" / "adapter", Path(where) / "ours"
        if found := drawn(tuner, seed, shapes, folder):
            d, want = found
            d.outcome, d.detail = told(d, folder, back, want)
            if deep and d.outcome in ("equal", "float32"):
                d.outcome, d.detail = beyond(d, folder) or (d.outcome, d.detail)
            return d
    return None


def is_inexact(d: Draw) -> bool:
    wide = d.tuner in INEXACT or any(t.inexact for s in specs().values() if s.peft_type == d.tuner for t in s.trials)
    return wide and bool(WHERE.get(d.tuner, lambda fields: True)(d.fields))


def where(why: Exception) -> str:
    frames = traceback.extract_tb(why.__traceback__)
    at = [f for f in frames if "/minipeft/" in f.filename or "fuzz" in f.filename][-1]
    return f"{type(why).__name__} at {at.filename.rpartition('/')[2]}:{at.lineno}: {why}"[:300]


def told(d: Draw, folder: Path, back: Path, want: np.ndarray) -> tuple[str, str]:
    """What minipeft makes of an adapter with which PEFT computes `want`."""
    step = "read"
    try:
        adapted = load_peft(ours(d.shape, d.i), folder)
        step = "compute"
        got = adapted.logits(batch(**d.values))
        step = "write"
        save_peft(adapted, back)
    except Bad as why:
        line = str(why).replace(str(folder), "").replace(str(back), "")
        if "\n" in line:
            return "defect", f"not one line: {line!r}"
        return ("refused" if step != "write" else "back refused"), line
    except Exception as why:
        return "defect", f"{step}: {where(why)}"
    how = compared(d, adapted, got, want)
    if how[0] == "defect":
        return how
    try:
        again = computed_by_peft(d, back)
    except Exception as why:
        return "defect", f"PEFT cannot read what was written: {type(why).__name__}: {str(why)[:250]}"
    if (there := compared(d, adapted, got, again))[0] == "defect":
        return "defect", f"written: {there[1]}"
    return how


def difference(d: Draw, got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Where a decoder's logits have a meaning: not at padding."""
    off = abs(got - want)
    if off.ndim == 3 and d.padding != "none" and d.shape != "t5":
        mask = d.values["attention_mask"]
        off[:, off.shape[1] - mask.shape[1] :] *= mask[:, :, None]
    return off


def condition(d: Draw, adapted: Adapted) -> float:
    """Of the logits, as `minipeft replay` has it: random signs reach a part of the worst case."""
    arrays = {k: v for k, v in adapted.adapters[0].arrays.items() if v.dtype.kind == "f"}
    asked = batch(**d.values)
    return 4 * sensitivity(lambda m, _: Adapted(m, adapted.adapters).logits(asked), adapted.model, arrays)


def compared(d: Draw, adapted: Adapted, got: np.ndarray, want: np.ndarray) -> tuple[str, str]:
    if got.shape != want.shape:
        return "defect", f"logits of shape {got.shape}, PEFT's of {want.shape}"
    off = difference(d, got, want).max()
    if off <= K * 2.0**-53 * abs(want).max():
        return "equal", ""
    cond = condition(d, adapted)
    if off <= K * 2.0**-53 * cond:
        return "equal", ""
    if is_inexact(d) and off <= K * 2.0**-24 * cond:
        return "float32", ""
    return "defect", f"differs by {off:.1e} where {K * 2.0**-53 * cond:.1e} may be"


def generates_otherwise(d: Draw, adapted: Adapted) -> bool:
    """Where PEFT generates with another model than it computes: deviations.md#peft-prompt-table."""
    embeds = any(s.embeds for s in specs().values() if s.peft_type == d.tuner)
    return embeds and any(f"{m}.".endswith(("embed_tokens.", "wte.")) for m in adapted.adapters[0].options["idle"])


def beyond(d: Draw, folder: Path) -> tuple[str, str] | None:
    """What is wrong with the loss, the gradients, generation, float32 or merging; None if nothing is."""
    step = "PEFT"
    try:
        values = {k: torch.tensor(v) for k, v in d.values.items()}
        try:
            base = lambda: theirs(d.shape, d.i, torch.float64)
            found = expected(base, folder, values, wide(), configured(folder), remade=None)
        except Exception as why:  # it has no loss, or no gradient
            found, step = {}, f"PEFT: {type(why).__name__}: {why}"[:300]
            if os.environ.get("FUZZ_SHOW"):
                print(d, step)
        if found:
            step = "replay"
            save_file(found, folder.parent / "expected.safetensors")
            report = replay(ours(d.shape, d.i), folder.parent)
            off = [t for t in report.tensors if t.outcome == "differs" or (not is_inexact(d) and (t.ratio or 0) > FAR)]
            off = [t for t in off if d.tuner not in KNOWN or not t.name.startswith("grad::")]
            if report.problem or off:
                return "defect", f"replay: {report.problem or off[0]}"
        adapted, asked = load_peft(ours(d.shape, d.i), folder), batch(**d.values)
        got = adapted.logits(asked)
        step = "float32"
        narrow = load_peft(ours(d.shape, d.i, np.float32), folder).logits(asked)
        if narrow.dtype != np.float32:
            return "defect", f"float32 gives {narrow.dtype}"
        cond = condition(d, adapted)
        if (off := difference(d, narrow, got).max()) > K * 2.0**-24 * cond:
            return "defect", f"float32 differs by {off:.1e} where {K * 2.0**-24 * cond:.1e} may be"
        step = "merge"
        try:
            off = difference(d, Adapted(merge(adapted)).logits(asked), got).max()
            if off > K * 2.0**-53 * cond:
                return "defect", f"merged differs by {off:.1e} where {K * 2.0**-53 * cond:.1e} may be"
        except Bad as why:
            if "\n" in str(why):
                return "defect", f"merge: not one line: {why}"
        step = "generate"
        if d.shape in (*DECODERS, "t5") and d.padding != "right" and not generates_otherwise(d, adapted):
            try:
                want = computed_by_peft(d, folder, tokens=3)
            except Exception:
                return None
            mine = generate(adapted, batch(**{k: v for k, v in d.values.items() if k != "labels"}), 3)
            if mine.shape != want.shape or (mine != want).any():
                return "defect", f"generated {mine.tolist()}, PEFT {want.tolist()}"
    except Exception as why:
        return "defect", f"{step}: {where(why)}"
    return None


def run(tuners: Any, draws: int, seed: int = 0, shapes: tuple[str, ...] = (), deep: bool = False) -> Iterator[Draw]:
    """The draws, one tuner after another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        for tuner in tuners:
            for k in range(draws):
                if found := judged(tuner, seed + k, shapes, deep):
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
    parser.add_argument("--deep", action="store_true", help="losses, gradients, generation, float32 and merging too")
    options = parser.parse_args()
    every = []
    for d in run(options.tuners or TUNERS, options.draws, options.seed, tuple(options.shapes), options.deep):
        every.append(d)
        if d.outcome == "defect" or "refused" in d.outcome:
            print(d.outcome.upper(), d, flush=True)
    print(table(every))
