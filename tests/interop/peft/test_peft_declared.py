"""What a configuration declares must be in its file: each declared part of recorded adapters, taken out, is missed by name."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from minipeft.attaching import attach
from minipeft.checkpoints import load
from minipeft.checkpoints.files import read_tensors
from minipeft.errors import Bad
from minipeft.interop.peft.config import checked
from minipeft.interop.peft.reading import load_peft, load_peft_parts
from minipeft.interop.peft.writing import save_peft

ROOT = Path(__file__).parents[2] / "data" / "peft"


@pytest.fixture(scope="module")
def bases():
    return {p.name: load(p / "base", np.float64) for p in ROOT.iterdir()}


def read(bases, folder, keep=lambda key: True, **change):
    config = json.loads((folder / "adapter_config.json").read_text()) | change
    tensors = {k: v for k, v in read_tensors(folder / "adapter_model.safetensors").items() if keep(k)}
    name = folder.parents[1].name if folder.name == "adapter" else folder.name
    return load_peft_parts(bases[name], checked(config), tensors, folder)


CASES = [  # a recorded adapter, the end of the keys that are taken out, what is missed
    ("llama/lora-modules-to-save", "lm_head.weight", "lm_head.weight, of the modules that are saved whole"),
    ("llama-cls/lora", "score.weight", "score.weight, of the modules that are saved whole"),
    ("bert-cls/lora-bert-cls", ("classifier.weight", "classifier.bias"), "classifier.weight, of the modules that are saved whole"),
    ("bert-cls/lora-bias-all", "output.LayerNorm.bias", "LayerNorm.bias, of bias='all' and "),
    ("bert-cls/lora-bias-lora-only", "0.attention.self.value.base_layer.bias", "value.bias, of bias='lora_only'"),
    ("gpt2/lora-bias-lora-only", "0.attn.c_attn.base_layer.bias", "c_attn.bias, of bias='lora_only'"),
    ("gpt2/lora-bias", "1.attn.c_attn.lora_B.bias", "c_attn.lora_B.bias"),
    ("llama/lora-trainable-tokens", "trainable_tokens_delta", "the rows of 'embed_tokens' that trainable_token_indices"),
    ("llama/dora", "1.self_attn.q_proj.lora_magnitude_vector", "q_proj.lora_magnitude_vector"),
    ("llama/adaption-prompt", "layers.0.self_attn.adaption_prompt", "layers.0.self_attn.adaption_prompt"),
    ("llama/adaption-prompt", ("0.self_attn.adaption_prompt", "0.self_attn.adaption_gate"), "of layers.0, of adapter_layers=2"),
    ("llama/poly", "0.self_attn.q_proj.poly_router.module_logits", "poly_router.module_logits"),
    ("llama/shira-unseeded", "0.mlp.down_proj.shira_indices", "0.mlp.down_proj.shira_indices"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "out", "missed"), CASES)
def test_a_declared_part_that_is_absent_is_missed(case, out, missed, bases):
    folder = ROOT / case / "adapter"
    read(bases, folder)
    gone = [k for k in read_tensors(folder / "adapter_model.safetensors") if k.endswith(out)]
    assert gone
    with pytest.raises(Bad, match=r"adapter_model\.safetensors lacks .*" + re.escape(missed)) as told:
        read(bases, folder, keep=lambda key: key not in gone)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("case", "change", "missed"),
    [
        ("llama/lora", dict(modules_to_save=["lm_head"]), "lm_head.weight, of the modules that are saved whole"),
        ("llama/lora", dict(modules_to_save=["lm_hed"]), r"the module 'lm_hed' of modules_to_save, and so does this base \(did you mean lm_head"),
        ("llama/lora", dict(task_type="SEQ_CLS"), "the classifier or score that task_type 'SEQ_CLS' declares, and so does this base"),
        ("llama/loha", dict(modules_to_save=["norm"]), "input_layernorm.weight, of the modules that are saved whole and 4 more"),
        ("llama/lora", dict(trainable_token_indices=[3]), "the rows of 'model.embed_tokens' that"),
        ("llama/lora", dict(trainable_token_indices={"lm_head": [3]}), "the rows of 'lm_head' that"),
        ("llama/lora-trainable-tokens", dict(trainable_token_indices={"embed_tokens": [3, 7, 19], "lm_head": [3]}), "the rows of 'lm_head' that"),
        ("llama/lora", dict(bias="all"), "q_proj.bias, of bias='all' and "),
        ("llama/oft", dict(bias="oft_only"), "of bias='oft_only'"),
        ("llama/lora", dict(use_dora=True), "lora_magnitude_vector"),
        ("llama/ia3", dict(feedforward_modules=[]), "as feedforward_modules declares it, a scale of its outputs"),
    ],
)  # fmt: skip
def test_what_is_declared_beyond_the_file_is_missed(case, change, missed, bases):
    with pytest.raises(Bad, match="lacks .*" + missed):
        read(bases, ROOT / case / "adapter", **change)


IDLE = dict(velora_config=dict(num_groups=2), use_qalora=True, qalora_group_size=2, kasa_config=dict(beta=0.1))


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("llama/osf", dict(target_modules=["k_proj", "o_proj", "embed_tokens"])),  # tables have no layer there, and are passed over
        ("llama/osf", dict(effective_rank=9.7)),  # PEFT rounds down
        ("llama/adalora", IDLE | dict(alora_invocation_tokens=[3], use_bdlora=dict(nblocks=2), arrow_config=dict(top_k=1))),
        ("llama/oft", dict(eps=0.0)),  # of coft alone
    ],
)  # fmt: skip
def test_what_is_declared_and_does_not_count_is_passed_over(case, change, bases):
    folder = ROOT / case / "adapter"
    usual, got = read(bases, folder), read(bases, folder, **change)
    assert usual.adapters[0].at == got.adapters[0].at
    assert all(np.array_equal(a, got.adapters[0].arrays[k]) for k, a in usual.adapters[0].arrays.items())


@pytest.mark.parametrize(
    ("case", "change", "line"),
    [
        ("llama/dora", dict(use_dora=False), "unexpected tensor .*lora_magnitude_vector"),
        ("gpt2/lora-bias", dict(lora_bias=False), r"unexpected tensor .*lora_B\.bias"),
        ("llama/lora-trainable-tokens", dict(trainable_token_indices=None), "tensors of trained tokens need trainable_token_indices"),
        ("llama/adaption-prompt", dict(adapter_layers=1), "adapter_layers=1 leaves out layers.0, which the file has"),
        ("llama/adaption-prompt", dict(adapter_layers=3), "adapter_layers: expected at most 2, the layers of this base, found 3"),
        ("llama/adaption-prompt", dict(adapter_len=2), r"expected shape \(2, 24\), found \(3, 24\)"),
        ("llama/prompt-tuning", dict(num_virtual_tokens=2), r"expected shape \(2, 24\), found \(3, 24\)"),
        ("t5/prompt-tuning", dict(num_virtual_tokens=2), r"expected shape \(2, 16\), found \(6, 16\)"),
        ("t5/prompt-tuning", dict(num_transformer_submodules=1), r"expected shape \(3, 16\), found \(6, 16\)"),
        ("llama/prompt-tuning", dict(num_transformer_submodules=2), "num_transformer_submodules: expected 1, as llama has one stack"),
        ("llama/prefix-tuning", dict(num_attention_heads=4), "num_attention_heads: expected 2, as this base has, found 4"),
        ("llama/prefix-tuning", dict(num_layers=1), "num_layers: expected at least 2, a prefix for every block, found 1"),
        ("llama/prefix-tuning", dict(num_layers=3), r"expected shape \(3, 72\), found \(3, 48\)"),
        ("t5gated/prefix", dict(num_transformer_submodules=1), "num_transformer_submodules: expected 2, as this base has"),
        ("llama/osf", dict(effective_rank=8), "effective_rank=8 leaves 4 at model.layers.0.self_attn.k_proj, the file's rank is 3"),
        ("llama/osf", dict(effective_rank=None), "effective_rank=None leaves 6 at .*k_proj, the file's rank is 3"),
        ("llama/osf", dict(rank_pattern={r"1\.self_attn\.(k|o)": 7}), r"rank_pattern=7 leaves 5 at model.layers.1.self_attn.k_proj, .* 3"),
        ("llama/osf-pattern", dict(rank_pattern={}), "effective_rank=0.3 leaves 14 at .*up_proj, the file's rank is 3"),
        ("llama/osf-pattern", dict(rank_pattern={"up": 0}), "rank_pattern: expected a dictionary"),
        ("llama/adalora-unmasked", dict(init_r=4), "init_r=4 at .*q_proj, the file's rank is 3"),
        ("llama/adalora", dict(rank_pattern=None), "init_r=4 at .*0.self_attn.q_proj, the file's rank is 2"),
        ("llama/adalora-unmasked", dict(rank_pattern={"model.layers.1.self_attn.q_proj.lora_E": [True, False, True]}), "rank_pattern leaves 2 at .*1.self_attn.q_proj, .* 3"),
        ("llama/adalora-unmasked", dict(rank_pattern={"model.layers.1.self_attn.q_proj.lora_E": [True] * 4}), "rank_pattern: .*1.self_attn.q_proj: expected 3 of true and false, found 4"),
        ("llama/adalora-unmasked", dict(rank_pattern={"model.layers.1.mlp.up_proj.lora_E": [True] * 3}), "rank_pattern names model.layers.1.mlp.up_proj, which has no tensors"),
        ("llama/adalora-unmasked", dict(rank_pattern={"q": 2}), "rank_pattern: expected null or a dictionary"),
        ("llama/fourierft", dict(n_frequency=10), r"expected shape \(10,\), found \(11,\)"),
        ("llama/fourierft-pattern", dict(n_frequency_pattern={}), r"expected shape \(11,\), found \(6,\)"),
        ("llama/shira", dict(r=3), r"expected shape \(\d+,\), found"),
        ("llama/vera", dict(r=4), r"expected shape \(4, 24\), found \(5, 24\)"),
        ("llama/loha-pattern", dict(rank_pattern={}), r"expected shape .*3.*, found"),
        ("llama/poly", dict(n_splits=2), "expected shape"),
        ("llama/xlora", dict(hidden_size=9), "hidden_size: expected 24, as this base has, found 9"),
    ],
)  # fmt: skip
def test_what_the_file_has_and_the_configuration_denies(case, change, line, bases):
    with pytest.raises(Bad, match=line):
        read(bases, ROOT / case / "adapter", **change)


def test_a_prompt_of_one_stack(bases, tmp_path):
    """With num_transformer_submodules=1 an encoder-decoder's file has p rows, not 2 p; it computes the same."""
    from minipeft.interop.peft.writing import to_peft_tensors
    from minipeft.model.batch import batch

    folder = ROOT / "t5/prompt-tuning/adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    rows = read_tensors(folder / "adapter_model.safetensors")["prompt_embeddings"]
    one = load_peft_parts(
        bases["t5"], checked(config | dict(num_transformer_submodules=1)), dict(prompt_embeddings=rows[:3]), folder
    )
    two = read(bases, folder)
    given = batch(input_ids=np.array([[5, 9, 3]]), labels=np.array([[4, 2]]))
    assert (one.logits(given) == two.logits(given)).all()
    arrays = one.adapters[0].arrays
    assert to_peft_tensors(one, one.adapters[0], arrays)["prompt_embeddings"].shape == (3, 16)
    save_peft(one, tmp_path / "again")
    again = load_peft_parts(bases["t5"], *_of(tmp_path / "again"), tmp_path)
    assert (again.logits(given) == two.logits(given)).all()


def _of(folder):
    return checked(json.loads((folder / "adapter_config.json").read_text())), read_tensors(
        folder / "adapter_model.safetensors"
    )


def test_mica_trains_one_factor(bases):
    """Of a file whose start is told in other capitals PEFT trains both: it is LoRA's."""
    folder = ROOT / "llama/lora/adapter"
    for start, name, trained in (("mica", "mica", {"A"}), ("Mica", "lora", {"A", "B"})):
        adapter = read(bases, folder, init_lora_weights=start).adapters[0]
        assert adapter.method.name == name and {k.rpartition(":")[2] for k in adapter.trained} == trained


def test_prefixes_that_peft_would_compute_otherwise_are_not_written(bases, tmp_path):
    from minipeft.methods.prompt.prefix_tuning import PrefixTuning

    for base, method, targets, line in [
        ("mistral", PrefixTuning(p=2), None, "window='all' is not what PEFT computes with a sliding window; expected 'past'"),
        ("llama", PrefixTuning(p=2, positions="zero"), None, "positions='zero' is not what PEFT computes; expected 'after'"),
        ("llama", PrefixTuning(p=2, layout="peft"), None, "layout='peft' is not what PEFT computes without an encoder"),
        ("llama", PrefixTuning(p=2), "layers.0.attn.kv", "PEFT has prefixes at layers.0.attn.kv, layers.1.attn.kv alone"),
    ]:  # fmt: skip
        with pytest.raises(Bad, match=line):
            save_peft(attach(bases[base], method, targets=targets), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("case", "end", "change", "told"),
    [
        ("llama/oft", "oft_R.weight", lambda a: a.reshape(-1), r"expected shape \(n, n\), found"),
        ("llama/shira", "shira_indices", lambda a: a[None], r"expected shape \(2, n\), found"),
        ("llama/shira", "shira_indices", lambda a: a.astype(np.float32), "expected integers, found float32"),
        ("llama/shira", "shira_indices", lambda a: a - 1, "shira_indices: expected whole numbers from 0 to 23, found -1"),
        ("llama/shira", "shira_indices", lambda a: a * 3, "shira_indices: expected whole numbers from 0 to 23, found"),
        ("llama/shira", "shira_indices", lambda a: a * 0, r"shira_indices: with rows it names \(0, 0\) twice"),
        ("llama/supertuning", "supertuning_indices", lambda a: a.astype(np.float32), "expected integers, found float32"),
        ("llama/supertuning", "supertuning_indices", lambda a: a + 9999, "supertuning_indices: expected whole numbers from 0 to 575, found"),
        ("llama/supertuning", "supertuning_indices", lambda a: a * 0 + 7, "supertuning_indices: it names 7 twice"),
        ("llama/adaption-prompt", "adaption_prompt", lambda a: a[:0], "expected numbers along one axis or more"),
        ("llama/adaption-prompt", "adaption_prompt", lambda a: a[0], r"expected shape \(1, n, n\), found"),
        ("llama/adalora", "lora_E", lambda a: a.T, r"expected shape \(n, 1\), found"),
        ("llama/lora", "lora_A.weight", lambda a: a.astype(np.int64), "expected floating-point numbers, found int64"),
        ("llama/lora-embedding-resized", "base_layer.weight", lambda a: a.astype(np.int64), "expected floating-point numbers, found int64"),
    ],
)  # fmt: skip
def test_tensors_of_another_shape_or_type_are_refused(case, end, change, told, bases):
    folder = ROOT / case / "adapter"
    tensors = read_tensors(folder / "adapter_model.safetensors")
    changed = {k: change(a) if k.endswith(end) else a for k, a in tensors.items()}
    assert any(changed[k] is not tensors[k] for k in tensors)
    config = checked(json.loads((folder / "adapter_config.json").read_text()))
    with pytest.raises(Bad, match=told):
        load_peft_parts(bases[case.split("/")[0]], config, changed, folder)


@pytest.mark.parametrize("value", ["text", 1.5, True, [1]])
def test_the_class_of_the_base_is_a_dictionary(value, bases):
    with pytest.raises(Bad, match="auto_mapping: expected a dictionary or null"):
        read(bases, ROOT / "bert-cls" / "lora-bert-cls" / "adapter", auto_mapping=value)


def test_a_classifier_that_is_the_bases_own_is_so_whatever_the_task(bases):
    """Where it cannot be that of the task: PEFT puts the adapter on the model that it is given."""
    folder = ROOT / "llama-cls" / "lora" / "adapter"
    usual, got = read(bases, folder), read(bases, folder, task_type="TOKEN_CLS")
    assert got.model.arch.head == "classify" and got.adapters[0].at == usual.adapters[0].at


def test_a_part_of_a_classifier_may_be_saved_whole(tmp_path):
    """Of RoBERTa's, whose dense layer has the name of the layers' own."""
    model = load(ROOT.parent / "bases" / "roberta-cls", np.float64)
    adapted = attach(model, "lora", targets="query", train_whole=["classifier.dense"])
    save_peft(adapted, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["classifier.dense"]
    again = load_peft(model, tmp_path)
    assert again.adapters[0].trained == adapted.adapters[0].trained and again.model.arch == model.arch
