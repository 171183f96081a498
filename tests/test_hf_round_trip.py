"""By the command line: train → merge → transformers, and train → convert → PEFT → convert back, and the numbers stay the same."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_json
from minipeft.checkpoints.native import load_adapter
from minipeft.cli import main
from minipeft.conformance.laws import K
from minipeft.data import BASE
from minipeft.model.batch import batch
from minipeft.model.sensitivity import sensitivity
from minipeft.text import encode, load_tokenizer

pytestmark = pytest.mark.hf
TEXTS = {
    "bad": ["I hate rain", "what a bad day", "awful, simply awful", "nobody likes this"],
    "so": ["it is a day", "rain is wet", "the day has an end", "this is text"],
    "good": ["I love rain", "what a good day", "simply good", "everybody likes this so much"],
}
MERGES = {"lora": [], "dora": ["--set", "r=3"], "ia3": [], "oft": [], "vera": [], "full": []}
INPUTS = ["I love this awful rain so much", "a day", "nobody likes the end"]


@pytest.fixture(scope="module")
def wide():
    """transformers and PEFT in float64."""
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(Path(__file__).parent / "record"))
    import float64

    yield float64
    sys.path.remove(str(Path(__file__).parent / "record"))


def words_of(folder, pad):
    """A tokenizer of the words above, as a checkpoint of BERT or RoBERTa has one."""
    import tokenizers

    words = sorted({w for texts in TEXTS.values() for t in texts for w in t.replace(",", "").split()})
    special = ["[UNK]", "<pad>"] if pad else ["[PAD]", "[UNK]"]
    vocab = {w: i for i, w in enumerate([*special, "[CLS]", "[SEP]", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [(w, vocab[w]) for w in ("[CLS]", "[SEP]")]
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return len(vocab)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, wide):
    """The decoder of the package; a BERT without a pooler, its file bare of a classifier; a RoBERTa with a masked-language head."""
    import torch
    import transformers as tf

    root = tmp_path_factory.mktemp("bases")
    sizes = dict(
        hidden_size=20, num_hidden_layers=2, num_attention_heads=2, intermediate_size=28, max_position_embeddings=64
    )
    torch.manual_seed(0)
    for name, cls, config, pad in (
        ("bert", tf.BertForMaskedLM, tf.BertConfig, 0),
        ("roberta", tf.RobertaForMaskedLM, tf.RobertaConfig, 1),
    ):
        vocab = words_of(root / name, pad)
        made = cls(config(vocab_size=vocab, pad_token_id=pad, **sizes))
        wide.jitter(made, torch.Generator().manual_seed(1))
        made.save_pretrained(root / name)
    return {"llama": BASE, "bert": root / "bert", "roberta": root / "roberta"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["text", "label", "split"])
        out.writerows([t, label, split] for split in ("train", "test") for label, ts in TEXTS.items() for t in ts)
    return path


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    assert ended.value.code in (0, None)


def trained(base, data, out, method, *words):
    command(
        "train", method, out, "--base", base, "--data", data, "--steps", 4, "--dtype", "float64", "--seed", 3, *words
    )


def given_by(base):
    tokenizer = load_tokenizer(base)
    ids, mask = encode(tokenizer, INPUTS, 32)
    assert (mask == 0).any()
    return dict(input_ids=ids, attention_mask=mask)


def ours(base, folder, given):
    return load_adapter(load(base, np.float64), folder).logits(batch(**given))


def theirs(model, given):
    import torch

    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            return model(**{k: torch.tensor(v) for k, v in given.items()}).logits.numpy()
    finally:
        torch.set_default_dtype(torch.float32)


def same(got, want, adapted, given, k=K):
    arrays = {k: v for k, v in adapted.theta.items() if v.dtype.kind == "f"}
    cond = sensitivity(lambda m, t: Adapted(m, adapted.adapters).logits(batch(**given), t), adapted.model, arrays)
    assert got.shape == want.shape == (3, 3)
    assert abs(got - want).max() <= k * 2.0**-53 * cond


@pytest.mark.parametrize("method", MERGES)
@pytest.mark.parametrize("name", ["llama", "bert", "roberta"])
def test_train_merge_transformers(name, method, bases, data, wide, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    base, given = bases[name], given_by(bases[name])
    trained(base, data, tmp_path / "a", method, *MERGES[method])
    command("merge", tmp_path / "a", tmp_path / "m", "--base", base, "--dtype", "float64")
    command("merge", tmp_path / "a", tmp_path / "usual", "--base", base)
    with wide.as_float64():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "m", dtype=torch.float64, attn_implementation="eager", output_loading_info=True
        )
        assert not report["missing_keys"] and not report["mismatched_keys"]
        assert set(model.config.id2label.values()) == set(TEXTS)
        got = theirs(model.eval(), given)
    want = ours(base, tmp_path / "a", given)
    same(got, want, Adapted(load(tmp_path / "m", np.float64)), given, 4 * K)
    usual = AutoModelForSequenceClassification.from_pretrained(tmp_path / "usual")
    stored = AutoModelForSequenceClassification.from_pretrained(tmp_path / "usual", dtype=torch.float64)
    assert usual.dtype == {"llama": torch.float16}.get(name, torch.float32)
    assert abs(theirs(stored.eval(), given) - want).max() < (1e-2 if name == "llama" else 1e-5)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


CONVERTS = {
    "lora": [],
    "dora": ["--set", "r=3"],
    "ia3": [],
    "oft": ["--set", "cayley=exact"],
    "loha": [],
    "prompt_tuning": [],
}


@pytest.mark.parametrize("method", CONVERTS)
@pytest.mark.parametrize("name", ["llama", "bert", "roberta"])
def test_train_convert_peft_and_back(name, method, bases, data, wide, tmp_path):
    import torch
    from peft import PeftModel
    from peft.tuners.lora import layer
    from transformers import AutoModelForSequenceClassification

    base, given = bases[name], given_by(bases[name])
    pool = ["--set", "pool=last_position"] if (name, method) == ("llama", "prompt_tuning") else []
    trained(base, data, tmp_path / "a", method, *CONVERTS[method], *pool)
    command("convert", tmp_path / "a", tmp_path / "p", "--base", base)
    config = read_json(tmp_path / "p" / "adapter_config.json")
    assert config["task_type"] == "SEQ_CLS"
    want = ours(base, tmp_path / "a", given)
    with wide.as_float64(layer):
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=3, dtype=torch.float64, attn_implementation="eager"
        )
        model = PeftModel.from_pretrained(model, tmp_path / "p").double().eval()
        assert type(model).__name__ == "PeftModelForSequenceClassification"
        got = theirs(model, given)
    held = load_adapter(load(base, np.float64), tmp_path / "a")
    loose = 2.0**29 if method == "prompt_tuning" else 1  # PEFT reads a prompt into float32
    same(got, want, held, given, 4 * K * loose)
    command("convert", tmp_path / "p", tmp_path / "again", "--base", base, "--dtype", "float64")
    same(ours(base, tmp_path / "again", given), want, held, given)


@pytest.mark.parametrize(("method", "command_", "says"), [
    ("prefix_tuning", "merge", "(prefix_tuning) does not merge"),
    ("houlsby", "merge", "(houlsby) does not merge"),
    ("houlsby", "convert", "houlsby cannot be written for PEFT"),
    ("prompt_tuning", "convert", "pool='token' is not what PEFT computes with a classifier on llama"),
])  # fmt: skip
def test_what_has_no_other_form(method, command_, says, data, tmp_path, capsys):
    trained(BASE, data, tmp_path / "a", method)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([command_, str(tmp_path / "a"), str(tmp_path / "m"), "--base", str(BASE)])
    line = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and says in line[-1] and not (tmp_path / "m").exists()
