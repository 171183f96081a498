"""Small valid files of every kind that is read, and how each is read: what stands in them, part by part."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minipeft.arrays import needs
from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_text
from minipeft.checkpoints.native import encode, load_adapter, save_adapter
from minipeft.conformance import cases, page, report, tiny
from minipeft.conformance.expect import concerning, explained, read_expectations, unexpected
from minipeft.conformance.judge import judge
from minipeft.conformance.mutants.killing import result_of
from minipeft.conformance.own import Own
from minipeft.conformance.results import Result, from_lines, to_lines
from minipeft.conformance.verify import choose
from minipeft.data import read_csv
from minipeft.drawing import Facts, there
from minipeft.engine.backend import to_host
from minipeft.engine.weight import held_arrays
from minipeft.interop.peft.reading import load_peft
from minipeft.limits import RESULT_BYTES
from minipeft.method import METHODS, load_methods
from minipeft.settings import small
from minipeft.targets import sites
from minipeft.text import load_tokenizer
from minipeft.train.loop import fit
from minipeft.train.optimisers import AdamW

DATA = Path(__file__).parents[1] / "data"
load_methods()
SHIPPED = sorted(n for n, c in METHODS.items() if c.__module__.startswith("minipeft.methods."))
TRAINED = ("adalora", "lora", "lora_plus", "osf", "prefix_tuning", "x_lora")  # of which a training is interrupted
CASES = ("lora", "ia3", "prompt_tuning", "qlora")  # whose recorded cases are read
IN_SUBJECTS = 12  # recorded cases in one folder
Parts = dict[str, str]  # what was read: {where it stands: what it is}, equal if and only if they compute the same


@dataclass(frozen=True)
class Subject:
    """A file or folder: its bytes by name, how it is read, and how what was read is used."""

    kind: str
    name: str
    files: Mapping[str, bytes] = field(repr=False)
    read: Callable[[Path], Any] = field(repr=False)
    parts: Callable[[Any], Parts] = field(repr=False)
    use: Callable[[Any], Any] = field(repr=False, default=lambda found: None)
    undeclared: Callable[[Any], tuple[str, str] | None] = field(repr=False, default=lambda found: None)
    sign: Callable[[dict[str, Any]], dict[str, Any]] | None = field(repr=False, default=None)  # digests written anew


def CONTROL(text: str) -> bool:
    """Whether one of its characters steers a terminal, is no character, or turns the direction of reading."""
    return any(unicodedata.category(c) in ("Cc", "Cs") or c in "\u2028\u2029\u202a\u202b\u202d\u202e" for c in text)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- what was read, part by part ----------------------------------------------------------------------------------------


def of_array(a: Any) -> str:
    a = np.asarray(to_host(a))
    return f"{a.dtype} {a.shape} {hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16]}"


def of_weight(W: Any) -> str:
    return " ".join(f"{key or 'array'} {of_array(a)}" for key, a in sorted(held_arrays(W).items()))


def of_model(model: Any) -> Parts:
    """What a base computes with: its facts, and its parameters."""
    parts = {f"arch.{f.name}": repr(getattr(model.arch, f.name)) for f in dataclasses.fields(model.arch)}
    parts |= {f"param.{name}": of_weight(W) for name, W in model.params.items()}
    return parts | {f"spare.{name}": of_weight(W) for name, W in model.spare.items()}


def of_adapted(adapted: Any, base: Any) -> Parts:
    """What an adapter computes with, and its base where the file brought parts of it."""
    parts: Parts = {}
    for n, a in enumerate(adapted.adapters):
        parts[f"name.{n}"] = a.name
        parts[f"weight.{n}"] = repr(adapted.weights.get(a.name, 1.0))
        for site, m in (("", a.method), *a.at.items()):
            parts |= {f"setting.{n}.{site}.{k}": repr(v) for k, v in encode(m).items()}
        parts |= {f"array.{key}": of_array(x) for key, x in a.arrays.items()}
        parts |= {f"trained.{key}": repr(key in a.trained) for key in a.arrays}
        parts |= {f"option.{k}": repr(encode(v)) for k, v in a.options.items() if k != "peft"}
    if adapted.model is not base:
        parts |= {f"base.{k}": v for k, v in of_model(adapted.model).items()}
    return parts


def of_trained(trained: Any) -> Parts:
    parts = {f"theta.{k}": of_array(a) for k, a in trained.adapted.theta.items()}
    parts |= {f"stored.{k}": of_array(x) for a in trained.adapted.adapters for k, x in a.stored.items()}
    return parts | {"losses": repr(trained.losses), "penalties": repr(trained.penalties)}


def of_cases(chosen: Any) -> Parts:
    parts = {"defaults": repr(chosen.defaults)}
    for case in chosen.cases:
        for f in dataclasses.fields(case):
            value = getattr(case, f.name)
            if f.name in ("inputs", "want"):
                parts |= {f"{case.id}.{f.name}.{k}": of_array(a) for k, a in value.items()}
            elif f.name != "folder":
                parts[f"{case.id}.{f.name}"] = repr(value)
    return parts


def of_splits(splits: Any) -> Parts:
    parts = {f"classes.{name}": repr(s.classes) for name, s in splits.items()}
    return parts | {f"rows.{name}": repr(sorted(zip(s.labels, s.texts))) for name, s in splits.items()}


def of_rows(found: Any) -> Parts:
    return {f"{n}.{f.name}": repr(getattr(r, f.name)) for n, r in enumerate(found) for f in dataclasses.fields(r)}


TEXTS = ("The cat sat on the mat.", "naïve — 12,5 € 🙂", "", "<s> </s> [PAD]\n\tx")


def of_tokenizer(tokenizer: Any) -> Parts:
    ids = [tokenizer.encode_one(t) for t in TEXTS]
    texts = [tokenizer.decode(i) for i in ids]
    return {"ids": repr(ids), "texts": repr(texts), "vocab": repr(tokenizer.vocab), "pad": repr(tokenizer.pad_id)}


# --- the subjects -------------------------------------------------------------------------------------------------------


def bytes_of(folder: Path, leave: tuple[str, ...] = ("expected.safetensors",)) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in leave)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def use_model(model: Any) -> None:
    adapted = attach(model, "lora", targets="all-linear")
    adapted.value_and_grad(tiny.example(model)) if model.arch.head != "none" else adapted.forward(tiny.example(model))


def use_adapted(adapted: Any) -> None:
    batch = tiny.example(adapted.model)
    if adapted.model.arch.head == "none":
        adapted.forward(batch)
    else:
        adapted.value_and_grad(batch, train=True, rng=np.random.default_rng(0))


def undeclared(adapted: Any) -> tuple[str, str] | None:
    """(kind, which) of the first array that is other than the accepted settings declare: names, shapes, trained, dtype."""
    every = sites(adapted.model)
    for a in adapted.adapters:
        at = [every[s] for s in a.at]
        facts = {s: Facts(m, every[s], sites=at, index=i) for i, (s, m) in enumerate(a.at.items())}
        facts |= {"": Facts(a.method, at[0], sites=at)} if at else {}
        expected = {f"{s}:{it.name}": it for s, f in facts.items() for it in there(f, shared=not s)}
        if odd := sorted(expected.keys() ^ a.arrays.keys()):
            return "other arrays than the settings declare", odd[0]
        for key, it in expected.items():
            found = a.arrays[key]
            if tuple(found.shape) != it.shape:
                return "an array of another shape than declared", f"{key}: {tuple(found.shape)} for {it.shape}"
            if it.trained < (key in a.trained):
                return "a stored array that is trained", key
            if found.dtype.kind == "f" and found.dtype != adapted.model.dtype:
                return "an array in another type than the model's", f"{key}: {found.dtype}"
    return None


def base(folder: Path) -> Subject:
    return Subject("base", folder.name, bytes_of(folder), load, of_model, use_model)


@cache
def tiny_base(name: str) -> Any:
    return tiny.model("bert" if name == "bitfit" else "llama")


def attached(name: str) -> Any:
    """A method on a tiny model, moved from its start."""
    model = tiny_base(name)
    method = small(METHODS[name], model.arch)
    batch = tiny.example(model, tasks=getattr(method, "n_tasks", 1))
    made = attach(model, method, data=[batch] if needs(method) else ())
    rng = np.random.default_rng(0)
    return made.replace({k: x + 0.1 * rng.standard_normal(x.shape) for k, x in made.theta.items()})


@cache
def saved(name: str) -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(attached(name), folder)
        return bytes_of(Path(folder))


def adapter(name: str) -> Subject:
    model = tiny_base(name)
    read = lambda folder: load_adapter(model, folder)
    return Subject("adapter", name, saved(name), read, lambda a: of_adapted(a, model), use_adapted, undeclared)


@cache
def base_of(folder: Path) -> Any:
    return load(folder)


def peft(folder: Path) -> Subject:
    """An adapter of PEFT, on the base that lies beside it."""
    model = base_of(folder.parent / "base")
    name = f"{folder.parent.name}/{folder.name}"
    read = lambda where: load_peft(model, where)
    files = bytes_of(folder / "adapter")
    return Subject("PEFT adapter", name, files, read, lambda a: of_adapted(a, model), use_adapted, undeclared)


class Killed(BaseException):
    """Ends a training in the middle."""


def training(name: str) -> Subject:
    """The checkpoint of a training that was killed after the second of four steps; reading it is to go on."""
    made = attached(name)
    batches = [tiny.example(made.model, seed=seed) for seed in (1, 2)]

    def trained(checkpoint: Path, progress: Any = None) -> Any:
        about = dict(steps=4, optimiser=AdamW(lr=1e-3), every=2, progress=progress)
        return fit(made, batches, checkpoint=checkpoint / "run.safetensors", **about)

    def killed(t: int, *_: Any) -> None:
        if t == 3:
            raise Killed

    with tempfile.TemporaryDirectory() as folder:
        try:
            trained(Path(folder), killed)
        except Killed:
            files = bytes_of(Path(folder))
    return Subject("training checkpoint", name, files, trained, of_trained, lambda t: use_adapted(t.adapted))


def recorded(method: str) -> Subject:
    """Some recorded cases of a method, with an index of their own."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = list(cases.load(methods=[method]))
        by_check = {c.check: c for c in reversed(chosen)}
        some = [c for c in chosen if c.variant == "usual" or c is by_check[c.check]][:IN_SUBJECTS]
        for case in some:
            shutil.copytree(case.folder, Path(folder) / case.folder.relative_to(cases.SHIPPED))
        index = json.loads((cases.SHIPPED / "index.json").read_text(encoding="utf-8"))
        index["cases"] = [i for i in index["cases"] if i["id"] in {c.id for c in some}]
        (Path(folder) / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        files = bytes_of(Path(folder), ())
    return Subject("recorded cases", method, files, choose, of_cases, use_cases, sign=sign_cases)


def use_cases(chosen: Any) -> None:
    """Every case is answered and judged."""
    for case in chosen.cases:
        result_of(Own(), case)
        blank = Result("", "", case.id, "SKIP")
        judge(case, {k: np.asarray(v, case.dtype) for k, v in case.want.items()}, blank)


def sign_cases(files: dict[str, Any]) -> dict[str, Any]:
    """The files with every digest written anew, as far as they can be."""

    def written(name: str, change: Callable[[Any], Any]) -> None:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            about = json.loads(files[name])
            change(about)
            files[name] = json.dumps(about, indent=1).encode()

    def digests(folder: str) -> Callable[[Any], None]:
        return lambda about: about["digests"].update({n: sha(files[f"{folder}{n}"]) for n in about["digests"]})

    def index(about: Any) -> None:
        for item in about["cases"]:
            item["sha256"] = sha(files[f"{item['path']}/case.json"])

    for name in [n for n in files if n.endswith("case.json")]:
        written(name, digests(name.removesuffix("case.json")))
    written("index.json", index)
    return files


TABLE = """text,label,split
"The plot is thin, the acting is not.",movies,train
It stopped working after a week,products,train
"She said ""no"" to the reform",editorials,train
so tired of mondays,tweets,train
A fine film,movies,test
The battery lasts,products,test
Broken on arrival,products,valid
naïve — 12 €,tweets,test
"two
lines",tweets,train
"""


def table() -> Subject:
    return Subject("CSV table", "texts", {"texts.csv": TABLE.encode()}, lambda f: read_csv(f / "texts.csv"), of_splits)


SOME = [
    Result("ours", "0.1", "lora.forward.usual", "PASS", ratio=0.5, relative=1e-16, dtype="float64", readings={"scale": "alpha/r"}),
    Result("theirs", "2.0", "lora.vjp.usual", "FAIL", "y", (0, 3), 1.0, float("nan"), float("inf"), 0.25, "float32", 0.01, "off",
           "https://example.org/1", diagnosis=("forgets_scale",)),
    Result("theirs", "2.0", "ia3.merge.usual", "SKIP", reason="this method is not there"),
]  # fmt: skip


def use_expectations(found: Any) -> None:
    concerning(found, [SimpleNamespace(id=r.id) for r in SOME])
    unexpected(explained(SOME, found), found)


def use_results(found: Any) -> None:
    """They are told on every page, in the terminal and as files."""
    report.markdown(found), report.junit(found), report.matrix(found), to_lines(found), report.field(found)
    page.html(found, {}, dict(version="", cases=len(found)))


def expectations() -> Subject:
    text = (Path(cases.__file__).parents[1] / "interop" / "loralib" / "known.toml").read_bytes()
    read = lambda folder: read_expectations(folder / "known.toml")
    return Subject("expectations", "loralib", {"known.toml": text}, read, of_rows, use_expectations)


def results() -> Subject:
    read = lambda folder: from_lines(read_text(folder / "results.json", RESULT_BYTES))
    return Subject("results", "three", {"results.json": to_lines(SOME).encode()}, read, of_rows, use_results)


@cache
def small_tokenizer() -> bytes:
    """The byte-level tokenizer of a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    made.train_from_iterator(["the cat sat on the mat", "a naive tale of 12 mats"] * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return made.to_str(pretty=True).encode()


def tokenizer() -> Subject:
    files = {
        "tokenizer.json": small_tokenizer(),
        "tokenizer_config.json": b'{"pad_token": "<pad>", "model_max_length": 64}\n',
    }
    return Subject("tokenizer", "byte-level", files, load_tokenizer, of_tokenizer)


MAKERS: dict[str, dict[str, Callable[[], Subject]]] = {
    "base": {p.name: lambda p=p: base(p) for kind in ("bases", "four_bits") for p in sorted((DATA / kind).iterdir())},
    "adapter": {n: lambda n=n: adapter(n) for n in SHIPPED},
    "PEFT adapter": {
        f"{p.parents[1].name}/{p.parent.name}": lambda p=p: peft(p.parent)
        for p in sorted((DATA / "peft").glob("*/*/adapter"))
    },
    "training checkpoint": {n: lambda n=n: training(n) for n in TRAINED},
    "recorded cases": {n: lambda n=n: recorded(n) for n in CASES},
    "CSV table": {"texts": table},
    "expectations": {"loralib": expectations},
    "results": {"three": results},
    "tokenizer": {"byte-level": tokenizer},
}  # kind -> name -> what makes the subject
SHARES = dict(zip(MAKERS, (0.22, 0.24, 0.24, 0.1, 0.07, 0.04, 0.03, 0.03, 0.03)))  # of all that are drawn


@cache
def subject(kind: str, name: str) -> Subject:
    return MAKERS[kind][name]()


def write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@cache
def undamaged(kind: str, name: str) -> Parts:
    """What a subject holds, read as it is."""
    with tempfile.TemporaryDirectory() as folder:
        write(subject(kind, name).files, Path(folder))
        return subject(kind, name).parts(subject(kind, name).read(Path(folder)))
