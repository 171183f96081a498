"""PEFT's rules for which modules a configuration names, and files in any order and under any wrapper's names."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sampled import in_turn

from minipeft.attaching import attach
from minipeft.checkpoints import load, with_head
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.errors import Bad
from minipeft.interop.peft.names import Naming, by_pattern, targeted, unwrapped
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.method import METHODS, load_methods, method_class
from minipeft.model.batch import batch

ROOT = Path(__file__).parents[2] / "data" / "peft"
CASES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("*/*") if p.name != "base")
IDS = np.array([[5, 9, 3, 17], [8, 30, 4, 11]])
load_methods()


@pytest.fixture(scope="module")
def bases():
    return {p.name: load(p / "base", np.float64) for p in ROOT.iterdir()}


# --- the rules, each expected set written by hand as a regular expression over our names ----------------------------------

Q = r".*attn\.q\.weight"


@pytest.mark.parametrize(
    ("base", "bare", "config", "expected"),
    [
        ("t5", False, dict(target_modules=["q"]), r".*(attn|cross)\.q\.weight"),
        ("t5", False, dict(target_modules=["SelfAttention.q"]), Q),
        ("t5", False, dict(target_modules=["decoder.block.0.layer.0.SelfAttention.q"]), r"layers\.0\.attn\.q\.weight"),
        ("t5", False, dict(target_modules=r"decoder\..*\.(q|v)"), r"layers\.\d\.(attn|cross)\.[qv]\.weight"),
        ("t5", False, dict(target_modules=["q"], exclude_modules=["EncDecAttention.q"]), Q),
        ("t5", False, dict(target_modules=["q"], exclude_modules=r"decoder.*"), r"encoder\..*attn\.q\.weight"),
        ("t5", False, dict(target_modules=["q"], layers_to_transform=[1], layers_pattern="block"), r".*layers\.1\..*\.q\.weight"),
        ("t5", False, dict(target_modules=["q"], layers_to_transform=1, layers_pattern=["block"]), r".*layers\.1\..*\.q\.weight"),
        ("t5", False, dict(target_modules=["q"], layers_to_transform=[1], layers_pattern=["layer"]), r".*layers\.\d\.cross\.q\.weight"),
        ("t5", False, dict(target_modules=["q"], layers_to_transform=[0]), r".*layers\.0\..*\.q\.weight"),
        ("t5", False, dict(target_modules=r".*\.q", layers_to_transform=[0]), r".*\.q\.weight"),  # an expression has no layers
        ("t5", False, dict(target_modules=["decoder.block.1.layer.0.SelfAttention.q"], layers_to_transform=[0]),
         r"layers\.1\.attn\.q\.weight"),  # nor has a whole name
        ("t5", False, dict(target_modules="all-linear"), r".*layers\..*\.(?!norm)\w+\.weight(?<!norm\.weight)"),
        ("llama", False, dict(target_modules=r"(?i).*Q_PROJ"), Q),
        ("llama", False, dict(target_modules=r"^model\.layers\.1\..*q_proj$"), r"layers\.1\.attn\.q\.weight"),
        ("llama", True, dict(target_modules=r"^layers\.1\..*q_proj$"), r"layers\.1\.attn\.q\.weight"),
        ("llama", True, dict(target_modules=r"^model\.layers\.1\..*q_proj$"), "none"),
        ("llama", True, dict(target_modules=["q_proj"], layers_to_transform=[0]), "none"),  # nothing in front of `layers`
        ("llama", True, dict(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern="layers"), r"layers\.0\.attn\.q\.weight"),
        ("llama", False, dict(target_modules=["proj"]), "none"),  # an end begins after a dot
        ("llama", False, dict(target_modules=["_orig_mod.model.layers.0.self_attn.q_proj"]), r"layers\.0\.attn\.q\.weight"),
        ("bert-cls", False, dict(target_modules=["classifier", "key"], task_type="SEQ_CLS"), r".*attn\.k\.weight"),
        ("bert-cls", False, dict(target_modules=["dense"], modules_to_save=["attention"]), r"(.*mlp\.(up|down)|pooler)\.weight"),
        ("bert-cls", False, dict(target_modules="all-linear"), r"(.*(attn|mlp)\.\w+(?<!norm)|pooler|score)\.weight"),
        ("bert-cls", False, dict(target_modules="all-linear", task_type="SEQ_CLS"), r"(.*(attn|mlp)\.\w+(?<!norm)|pooler)\.weight"),
        ("bert-cls", True, dict(target_modules=r"^encoder\.layer\.0\..*query"), r"layers\.0\.attn\.q\.weight"),
        ("bert-cls", True, dict(target_modules=["dense"]), r"(.*(attn\.o|mlp\.\w+)(?<!norm)|pooler)\.weight"),  # and no head
        ("gpt2", False, dict(target_modules=["wte", "lm_head"]), r"(embed\.tokens|head)\.weight"),
        ("gpt2", False, dict(target_modules=["c_proj"], exclude_modules=["attn.c_proj"]), r".*mlp\.down\.weight"),
    ],
)  # fmt: skip
def test_modules_that_a_configuration_names(base, bare, config, expected, bases):
    naming = Naming(bases[base], bare)
    linears = naming.modules().values()
    assert targeted(config, naming) == {s for s in linears if re.fullmatch(expected, s)}


def test_the_first_pattern_that_ends_a_name_counts():
    config = dict(rank_pattern={r"layers.1.mlp.up_proj": 4, "up_proj": 2, "k_proj|q_proj": 6})
    for module, rank in {
        "model.layers.1.mlp.up_proj": 4,
        "model.layers.0.mlp.up_proj": 2,
        "x.q_proj": 6,
        "q_proj": 6,
    }.items():
        assert by_pattern(config, "rank_pattern", [module], 3) == {module: rank}
    assert by_pattern(config, "rank_pattern", ["model.xq_proj"], 3) == {"model.xq_proj": 3}
    assert by_pattern({}, "rank_pattern", ["q_proj"], 3) == {"q_proj": 3}


@pytest.mark.parametrize(
    "config",
    [
        dict(target_modules="(q"),
        dict(target_modules=["q"], exclude_modules="*q"),
        dict(target_modules=["q"], modules_to_save=["("]),
        dict(target_modules=["q"], layers_to_transform=[0], layers_pattern="("),
    ],
)
def test_what_is_no_regular_expression(config, bases):
    with pytest.raises(Bad, match=r"adapter_config\.json: \w+: .*is no regular expression"):
        targeted(config, Naming(bases["t5"], False))


# --- files ----------------------------------------------------------------------------------------------------------------


def rewritten(case, folder, key=lambda k: k, order=None, config=None):
    """A recorded adapter with its keys renamed and its tensors in another order."""
    shutil.copytree(ROOT / case / "adapter", folder)
    for path in folder.rglob("adapter_model.safetensors"):
        tensors = read_tensors(path)
        keys = sorted(tensors) if order is None else [sorted(tensors)[i] for i in order(len(tensors))]
        write_tensors(path, {key(k): tensors[k] for k in keys})
    if config:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def same(one, two):
    a, b = one.adapters[0], two.adapters[0]
    assert list(a.at.items()) == list(b.at.items()) and list(a.arrays) == list(b.arrays) and a.trained == b.trained
    assert all((a.arrays[k] == v).all() for k, v in b.arrays.items())
    assert one.model.digest() == two.model.digest()


@pytest.mark.parametrize("case", in_turn(CASES, every=20))
def test_the_order_of_tensors_in_a_file_does_not_matter(case, bases, tmp_path):
    base = bases[case.split("/")[0]]
    orders = [lambda n: np.random.default_rng(n).permutation(n), lambda n: range(n)[::-1]]
    files = [rewritten(case, tmp_path / str(k), order=order) for k, order in enumerate(orders)]
    read = [load_peft(base, folder) for folder in [ROOT / case / "adapter", *files]]
    same(read[0], read[1])
    same(read[0], read[2])


NAMED = {
    "adapter name": lambda k: re.sub(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|hada_w\d_[ab])(?=\.|$)", r".\1.default", k),
    "compiled": lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
    "compiled outside": lambda k: "_orig_mod." + k,
    "distributed": lambda k: "module." + k,
    "distributed inside": lambda k: k.replace("base_model.model.", "base_model.model.module."),
    "saved whole": lambda k: re.sub(r"\.(lm_head|classifier)\.(?=weight|bias)", r".\1.modules_to_save.default.", k),
    "no root": lambda k: k.removeprefix("base_model.model."),
}  # fmt: skip


WRAPPED = ["llama/lora-embedding", "llama/dora", "llama/lora-modules-to-save", "llama/ia3", "bert-cls/lora-bert-cls", "t5/lora-t5"]  # fmt: skip


@pytest.mark.parametrize(("how", "case"), in_turn(itertools.product(NAMED, WRAPPED), every=5))
def test_names_that_wrappers_leave_in_keys(how, case, bases, tmp_path):
    base = bases[case.split("/")[0]]
    same(load_peft(base, ROOT / case / "adapter"), load_peft(base, rewritten(case, tmp_path / "a", NAMED[how])))


def test_names_of_torch_s_wrappers():
    assert unwrapped("_orig_mod.module.a._fsdp_wrapped_module.b") == "a.b"
    assert unwrapped("a.submodule.b") == "a.submodule.b"


def test_two_adapters_in_one_file(bases, tmp_path):
    folder = rewritten("llama/lora", tmp_path / "a", NAMED["adapter name"])
    path = folder / "adapter_model.safetensors"
    tensors = read_tensors(path)
    write_tensors(path, tensors | {k.replace("default", "other"): v + 1 for k, v in tensors.items()})
    with pytest.raises(
        Bad, match=r"lora_A\.default\.weight and .*lora_A\.other\.weight are the same tensor; expected one"
    ):
        load_peft(bases["llama"], folder)


def test_tensors_of_modules_that_are_no_targets(bases, tmp_path):
    """PEFT would not read them, and compute something else."""
    folder = rewritten("llama/lora", tmp_path / "a", config=dict(target_modules=["v_proj"]))
    with pytest.raises(
        Bad, match=r"2 modules have tensors and are no target_modules, the first model\.layers\.0\.self_attn\.q_proj"
    ):
        load_peft(bases["llama"], folder)


@pytest.mark.parametrize(("family", "prefix"), [("llama", "model."), ("gpt2", "transformer."), ("bert-cls", "bert.")])
def test_an_adapter_of_the_bare_model_and_of_the_model_with_a_head(family, prefix, bases, tmp_path):
    """Either on either base: the same arrays at the same sites."""
    case = {"llama": "llama/lora", "gpt2": "gpt2/lora-gpt2", "bert-cls": "bert-cls/ia3-bert"}[family]
    headed = bases[family]
    bare = with_head(headed, "none")
    where = ROOT / case / "adapter"
    tensors = {k: v for k, v in read_tensors(where / "adapter_model.safetensors").items() if "classifier" not in k}
    config = json.loads((where / "adapter_config.json").read_text()) | dict(task_type=None, modules_to_save=None)
    for name, start in {"headed": prefix, "bare": ""}.items():
        (tmp_path / name).mkdir()
        renamed = {k.replace(f"base_model.model.{prefix}", f"base_model.model.{start}"): v for k, v in tensors.items()}
        write_tensors(tmp_path / name / "adapter_model.safetensors", renamed)
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    read = [load_peft(b, tmp_path / n).adapters[0] for b in (headed, bare) for n in ("headed", "bare")]
    assert len({tuple(a.at) for a in read}) == 1 and len(read[0].at) > 1
    assert all((a.arrays[k] == v).all() for a in read for k, v in read[0].arrays.items())


# --- what the file brings of the base --------------------------------------------------------------------------------------


def test_a_resized_vocabulary_comes_with_the_adapter(bases, tmp_path):
    base = bases["llama"]
    for case, rows in {"llama/lora-resized": 47, "llama/lora-embedding-resized": 38}.items():
        adapted = load_peft(base, ROOT / case / "adapter")
        held = read_tensors(ROOT / case / "adapter" / "adapter_model.safetensors")
        tables = sorted(k for k in held if re.search(r"(embed_tokens|lm_head)\.(base_layer\.)?weight$", k))
        head, table = (adapted.model.params[f"{m}.weight"] for m in ("head", "embed.tokens"))
        assert adapted.model.arch.vocab == rows == len(head) == len(table) and base.arch.vocab == 43
        assert adapted.model.config["vocab_size"] == rows
        assert (held[tables[0]] == head).all() != (held[tables[0]] == table).all()
        save_peft(adapted, tmp_path / case)
        same(adapted, load_peft(base, tmp_path / case))


def test_a_base_that_the_file_changes_is_no_longer_the_others(bases):
    adapted = load_peft(bases["llama"], ROOT / "llama/lora/adapter")
    with pytest.raises(Bad, match="brings parts of its base; attach it before the others"):
        load_peft(adapted, ROOT / "llama/lora-resized/adapter", name="second")
    load_peft(adapted, ROOT / "llama/lora-embedding/adapter", name="second")  # the tables it brings are those at hand


def test_a_vocabulary_whose_new_rows_are_nowhere(bases, tmp_path):
    folder = rewritten("llama/lora-resized", tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    tensors = read_tensors(path)
    write_tensors(path, {k: v for k, v in tensors.items() if "lm_head" not in k})
    with pytest.raises(Bad, match=r"its vocabulary has 47 tokens, the base 43: lm_head\.weight lacks the new rows"):
        load_peft(bases["llama"], folder)
    write_tensors(path, tensors | {k: v[:-1] for k, v in tensors.items() if "lm_head" in k})
    with pytest.raises(Bad, match="the token table and the output matrix differ in their rows: 46, 47"):
        load_peft(bases["llama"], folder)
    smaller = {k: v[:40] if "embed_tokens" in k else v for k, v in tensors.items() if "lm_head" not in k}
    write_tensors(path, smaller)  # transformers keeps the first rows
    adapted = load_peft(bases["llama"], folder)
    assert (adapted.model.params["head.weight"] == bases["llama"].params["head.weight"][:40]).all()


def test_the_classifier_of_a_file_on_a_base_with_another_head(bases, tmp_path):
    for case, head in {"llama/lora-seq-cls": "classify", "llama/lora-token-cls": "tokens"}.items():
        adapted = load_peft(bases["llama"], ROOT / case / "adapter")
        held = read_tensors(ROOT / case / "adapter" / "adapter_model.safetensors")
        assert (adapted.model.arch.head, adapted.model.arch.labels) == (head, 3)
        assert (adapted.adapters[0].arrays["score.weight:W1"] == held["base_model.model.score.weight"]).all()
        save_peft(adapted, tmp_path / case)
        same(adapted, load_peft(bases["llama"], tmp_path / case))
        with pytest.raises(Bad, match="brings parts of its base"):
            load_peft(load_peft(bases["llama"], ROOT / "llama/lora/adapter"), ROOT / case / "adapter", name="second")


def test_a_classifier_that_is_not_what_the_task_says(bases, tmp_path):
    wrong = rewritten("llama/lora-seq-cls", tmp_path / "a", config=dict(task_type="TOKEN_CLS"))
    with pytest.raises(Bad, match=r"score\.weight is no part of the head that task_type TOKEN_CLS says"):
        load_peft(bases["llama"], wrong)
    untold = rewritten("llama/lora-seq-cls", tmp_path / "b", config=dict(task_type=None))
    assert load_peft(bases["llama"], untold).model.arch.head == "classify"  # llama's classifier of tokens has a bias
    other = rewritten("llama/lora-seq-cls", tmp_path / "c", lambda k: k.replace(".score.", ".classifier."))
    with pytest.raises(Bad, match=r"no classifier of a llama model consists of classifier\.weight \(3, 24\)"):
        load_peft(bases["llama"], other)


def test_a_method_at_the_classifier_is_no_classifier(bases, tmp_path):
    adapted = attach(bases["llama-cls"], METHODS["oft"](block=4, r=0), targets="q_proj score")
    save_peft(adapted, tmp_path / "a")
    same(adapted, load_peft(bases["llama-cls"], tmp_path / "a"))
    with pytest.raises(Bad, match=r"score\.oft_R\.weight names a module this llama base has not"):
        load_peft(bases["llama"], tmp_path / "a")


def test_bert_s_classifier_needs_its_pooler(bases, tmp_path):
    bare = with_head(bases["bert-cls"], "none")
    folder = ROOT / "bert-cls/lora-bert-cls/adapter"
    adapted = load_peft(bare, folder)  # the base at hand has a pooler beside
    given = batch(input_ids=IDS)
    want = load_peft(bases["bert-cls"], folder).logits(given)
    assert (adapted.logits(given) == want).all()
    with pytest.raises(
        Bad, match=r"needs bert\.pooler\.dense\.weight, which is neither in the adapter nor in the base"
    ):
        load_peft(dataclasses.replace(bare, spare={}), folder)
    untold = rewritten("bert-cls/lora-bert-cls", tmp_path / "b", config=dict(task_type=None))
    with pytest.raises(Bad, match=r"expected task_type SEQ_CLS or TOKEN_CLS, found None; classifier\.bias fits both"):
        load_peft(bare, untold)


def test_what_no_head_reads_is_kept(bases, tmp_path):
    """LoRA on the pooler of a bare BERT: the hidden states do not depend on it, and it is written again."""
    cls = bases["bert-cls"]
    lora = attach(cls, "lora", targets="query pooler.dense")
    save_peft(lora, tmp_path / "a")
    bare = with_head(cls, "none")
    adapted = load_peft(bare, tmp_path / "a")
    assert "pooler.weight" not in adapted.adapters[0].at and len(adapted.adapters[0].spare) == 2
    given = batch(input_ids=IDS)
    plain = attach(bare, "lora", targets="query")
    assert (adapted.forward(given).hidden == plain.forward(given).hidden).all()
    save_peft(adapted, tmp_path / "b")
    again = load_peft(cls, tmp_path / "b")
    same(again, load_peft(cls, tmp_path / "a"))


def test_tokens_beside_a_tuner_that_has_no_field_for_them(bases, tmp_path):
    """PEFT passes over the field and the rows, and would compute another model than ours."""
    rows = method_class("trainable_tokens")(tokens=(5, 9))
    for name in ("lora", "adalora"):
        save_peft(attach(bases["llama"], name, beside=[rows]), tmp_path / name)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["trainable_token_indices"] == {"model.embed_tokens": [5, 9]}
    for name in ("ia3", "loha"):
        with pytest.raises(
            Bad, match=f"{name} cannot be written for PEFT with trainable_tokens beside it: {name.upper()} has no"
        ):
            save_peft(attach(bases["llama"], name, beside=[rows]), tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_table_that_t5_does_not_look_up(bases, tmp_path):
    """transformers gives each stack a table of its own: a change of `shared` computes nothing in PEFT, so that none is written."""
    t5 = bases["t5"]
    for options in (dict(targets="embed.tokens.weight"), dict(targets="attn.q.weight", train_whole=["shared"])):
        with pytest.raises(Bad, match="PEFT would compute nothing; expected trainable_tokens"):
            save_peft(attach(t5, "lora", **options), tmp_path / "a")
    folder = rewritten("t5/lora-t5", tmp_path / "b")
    path = folder / "adapter_model.safetensors"
    tensors, d = read_tensors(path), t5.arch.d
    name = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    more = {
        "lora_embedding_A": np.ones((3, t5.arch.vocab), np.float32),
        "lora_embedding_B": np.ones((d, 3), np.float32),
    }
    write_tensors(path, tensors | {f"base_model.model.shared.{k}": v for k, v in more.items()})
    (folder / "adapter_config.json").write_text(
        json.dumps(json.loads((folder / "adapter_config.json").read_text()) | dict(target_modules=[*name, "shared"]))
    )
    given = batch(input_ids=IDS, labels=IDS)
    adapted = load_peft(t5, folder)
    assert (adapted.logits(given) == load_peft(t5, ROOT / "t5/lora-t5/adapter").logits(given)).all()
    save_peft(adapted, tmp_path / "c")
    same(adapted, load_peft(t5, tmp_path / "c"))
    write_tensors(path, tensors | {f"base_model.model.encoder.embed_tokens.{k}": v for k, v in more.items()})
    with pytest.raises(Bad, match=r"encoder\.embed_tokens\.lora_embedding_A changes the table of one stack"):
        load_peft(t5, folder)


def test_trained_tokens_of_a_tied_head(bases, tmp_path):
    """Those of the table count; a head with others of its own, or alone, is another thing."""
    base = bases["found-bertmlm"]
    folder = rewritten("found-bertmlm/trainable_tokens", tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    tensors = read_tensors(path)
    assert load_peft(base, folder).adapters[0].at.keys() == {"embed.tokens.weight"}
    write_tensors(path, tensors | {k: v + 1 for k, v in tensors.items() if "decoder" in k})
    with pytest.raises(Bad, match="the tied head has trained tokens of its own; expected those of the table"):
        load_peft(base, folder)


def test_an_untouched_base_stays_the_same_object(bases):
    for case in ("llama/lora", "llama/lora-embedding", "llama/lora-modules-to-save"):
        assert load_peft(bases["llama"], ROOT / case / "adapter").model is bases["llama"]
