"""The fields of a config.json: read, known not to matter, refused or named; and tensors under the names that people have."""

import json
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from sampled import in_turn

from minipeft import limits
from minipeft.adapted import Adapted
from minipeft.checkpoints import _family, load, read_arch
from minipeft.checkpoints.config import ACTS, Fields, activation
from minipeft.checkpoints.config import READ as OF_ALL
from minipeft.checkpoints.files import read_tensors, write_tensors
from minipeft.errors import Bad, Note
from minipeft.model.activations import ACTIVATIONS
from minipeft.model.batch import batch

ROOT = Path(__file__).parents[1] / "data" / "bases"
CONFIGS = {n: json.loads((ROOT / n / "config.json").read_text()) for n in ("gpt2", "llama", "mistral", "qwen2", "bert", "roberta-mlm", "t5", "vit")}  # fmt: skip


def fields(config):
    found = _family(config["model_type"]).FIELDS
    return found if isinstance(found, Fields) else found[config["model_type"]]


def test_the_recorded_configurations_leave_nothing_to_be_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        for config in CONFIGS.values():
            read_arch(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_nobody_knows_is_named_in_one_line(name):
    with pytest.warns(Note, match="not honoured: mystery, turbo") as said:
        arch = read_arch(CONFIGS[name] | dict(turbo=True, mystery=None))
    assert len([w for w in said if w.category is Note]) == 1 and arch == read_arch(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_value_of_another_kind_is_one_line(name):
    """Text, null, negative numbers, fractions, lists, and numbers that are none, in every field that is read."""
    config = CONFIGS[name]
    refused = 0
    for field, kind in fields(config).read.items():
        for value in ("many", None, -3, 0.5, [1, 2], {}, float("nan"), float("inf"), True, [None], "gelu"):
            if (value is None and kind.null) or kind.fits(value):
                continue
            with pytest.raises(Bad) as why:
                read_arch(config | {field: value})
            assert "\n" not in str(why.value) and field in str(why.value), why.value
            refused += 1
    assert refused > 60


REFUSED = {
    "llama": [
        dict(rope_scaling={"rope_type": "yarn", "factor": 2.0}), dict(rope_scaling={"type": "dynamic", "factor": 2.0}),
        dict(rope_scaling={"type": "linear"}), dict(rope_scaling={"type": "linear", "factor": -1}),
        dict(rope_scaling={"type": "linear", "factor": "2"}), dict(partial_rotary_factor=0.5), dict(hidden_act="xielu"),
        dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}), dict(attn_logit_softcapping=30.0),
        dict(num_key_value_heads=4), dict(head_dim=5), dict(quantization_config={"quant_method": "awq"}, hidden_act="prelu"),
        dict(problem_type="ranking"), dict(architectures=["LlamaForQuestionAnswering"]), dict(architectures="LlamaForCausalLM"),
        dict(hidden_size=25, head_dim=None), dict(eos_token_id="</s>"), dict(model_type="lama"), dict(model_type=["llama"]),
    ],
    "qwen2": [
        dict(use_sliding_window=True, sliding_window=3, layer_types=["sliding_attention"]),
        dict(use_sliding_window=True, sliding_window=3, layer_types=["sliding_attention", "chunked_attention"]),
        dict(use_sliding_window=False, layer_types=["sliding_attention", "full_attention"]),
    ],
    "gpt2": [dict(scale_attn_by_inverse_layer_idx=True), dict(add_cross_attention=True), dict(n_head=3), dict(pruned_heads={"0": [1]})],
    "bert": [dict(position_embedding_type="relative_key"), dict(add_cross_attention=True), dict(is_encoder_decoder=True)],
    "roberta-mlm": [dict(pad_token_id=None), dict(pad_token_id=-1)],
    "t5": [dict(feed_forward_proj="gated-gelu-new"), dict(dense_act_fn="xielu"), dict(is_encoder_decoder=False),
           dict(relative_attention_num_buckets=2), dict(scale_decoder_outputs=None), dict(decoder_start_token_id=99), dict(pad_token_id=99),
           dict(architectures=["T5ForSequenceClassification"])],
    "vit": [dict(image_size=[8, 12]), dict(patch_size=0), dict(use_mean_pooling=True)],
}  # fmt: skip


@pytest.mark.parametrize("name, change", [(n, c) for n, cs in REFUSED.items() for c in cs], ids=str)
def test_what_is_not_computed_is_refused_in_one_line(name, change):
    with pytest.raises(Bad) as why:
        read_arch(CONFIGS[name] | change)
    assert "\n" not in str(why.value)


def test_windows_are_where_transformers_has_them():
    """None in llama, whatever its file says; the first `max_window_layers` of Qwen2 see everything."""
    with pytest.warns(Note, match="sliding_window"):
        assert read_arch(CONFIGS["llama"] | dict(sliding_window=3, use_sliding_window=True)).window is None
    known = CONFIGS["qwen2"] | dict(num_hidden_layers=4, layer_types=None, sliding_window=3)
    windows = {
        (use, first): [
            read_arch(known | dict(use_sliding_window=use, max_window_layers=first)).window_of(n) for n in range(4)
        ]
        for use in (True, False)
        for first in (0, 3, 9)
    }
    assert windows == {
        (True, 0): [3, 3, 3, 3], (True, 3): [None, None, None, 3], (True, 9): [None] * 4,
        (False, 0): [None] * 4, (False, 3): [None] * 4, (False, 9): [None] * 4,
    }  # fmt: skip
    absent = {k: v for k, v in CONFIGS["mistral"].items() if k != "sliding_window"}
    assert read_arch(absent).window == 4096 and read_arch(absent | dict(sliding_window=None)).window is None


def test_end_tokens():
    ids = lambda eos, beside=None: read_arch(CONFIGS["llama"] | dict(eos_token_id=eos), beside).eos_ids
    assert [ids(5), ids([5, 6]), ids([]), ids(None), ids(-1)] == [(5,), (5, 6), (), (), ()]
    absent = {k: v for k, v in CONFIGS["llama"].items() if k != "eos_token_id"}
    assert (
        read_arch(absent).eos_ids == () and read_arch(absent).fill_id == absent["pad_token_id"]
    )  # no default of the family's
    assert ids(5, dict(eos_token_id=[7, 8])) == (7, 8) and ids(5, {}) == ()
    arch = read_arch(CONFIGS["t5"], dict(pad_token_id=3, eos_token_id=9))
    assert (arch.pad_id, arch.fill_id, arch.start_id) == (0, 3, 0)
    with pytest.raises(Bad, match=r"generation_config\.json: eos_token_id"):
        ids(5, dict(eos_token_id="x"))
    with pytest.warns(Note, match=r"repetition_penalty=1\.3"):
        ids(5, dict(repetition_penalty=1.3, eos_token_id=2))


def test_every_activation_is_computed_or_refused():
    assert set(ACTS.values()) == set(ACTIVATIONS)
    with pytest.raises(Bad, match="did you mean quick_gelu"):
        activation("quick_geluu")


# --- tensors ----------------------------------------------------------------------------------------------------------


def rewritten(folder, name, change):
    """The base with other tensors in its file."""
    shutil.copytree(ROOT / name, folder)
    for path in sorted(folder.glob("model*")):
        path.unlink()
    tensors = {}
    for path in sorted((ROOT / name).glob("model*.safetensors")):
        tensors |= read_tensors(path)
    write_tensors(folder / "model.safetensors", change(tensors))
    return folder


def same(a, b):
    return a.params.keys() == b.params.keys() and all((a.params[k] == b.params[k]).all() for k in a.params)


def pre(prefix):
    return lambda tensors: {prefix + k: v for k, v in tensors.items()}


def bare(prefix):
    return lambda tensors: {k.removeprefix(prefix): v for k, v in tensors.items()}


def more(**shapes):
    return lambda tensors: tensors | {k.replace("__", "."): np.full(s, 0.5, np.float32) for k, s in shapes.items()}


READ = [
    ("llama", pre("module.")), ("gpt2", pre("_orig_mod.")), ("bert", pre("module._orig_mod.")), ("gpt2", bare("transformer.")),
    ("llama", lambda t: {k.replace(".self_attn.", "._orig_mod.self_attn.").replace(".mlp.", "._fsdp_wrapped_module.mlp."): v for k, v in t.items()}),
    ("bert-cls", bare("bert.")), ("llama-cls", bare("model.")), ("vit", bare("vit.")), ("bert", pre("bert.")),
    ("bert-cls", more(cls__predictions__bias=(43,), cls__seq_relationship__weight=(2, 20))),
    ("llama-cls", more(lm_head__weight=(43, 24))), ("gpt2", more(multiple_choice_head__summary__weight=(1, 20))),
    ("vit", more(vit__pooler__dense__weight=(20, 20), vit__embeddings__mask_token=(1, 1, 20))),
    ("t5", lambda t: {"decoder.embed_tokens.weight" if k == "shared.weight" else k: v for k, v in t.items()}),
    ("t5", lambda t: t | {"encoder.embed_tokens.weight": t["shared.weight"], "lm_head.weight": t["shared.weight"]}),
    ("llama-linear", lambda t: {"lm_head.weight" if k == "model.embed_tokens.weight" else k: v for k, v in t.items()}),
    ("gpt2", more(transformer__h__0__attn__bias=(1, 1, 4, 4), transformer__h__1__attn__masked_bias=())),
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(READ)))
def test_bases_under_other_names_and_with_other_heads(at, tmp_path):
    name, change = READ[at]
    assert same(load(rewritten(tmp_path / "base", name, change)), load(ROOT / name))


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("llama", more(model__layers__0__self_attn__q_proj__bias=(24,)), "not known"),
        ("llama-cls", more(score__bias=(4,)), "not known"),
        ("llama", more(lm_head__bias=(43,)), "not known"),
        ("bert", lambda t: t | {"bert." + k: v + 1 for k, v in t.items() if "word" in k}, "twice"),
        ("bert", lambda t: t | {"embeddings.LayerNorm.gamma": t["embeddings.LayerNorm.weight"]}, "twice"),
        ("t5", lambda t: t | {"encoder.embed_tokens.weight": t["shared.weight"] + 1}, "shared token table"),
        ("llama", lambda t: t | {"model.norm.weight": np.ones(24, np.int8)}, "int8"),
    ],
)  # fmt: skip
def test_what_would_be_dropped_is_refused(name, change, message, tmp_path):
    with pytest.raises(Bad, match=message) as why:
        load(rewritten(tmp_path / "base", name, change))
    assert "\n" not in str(why.value)


def test_a_classifier_reads_the_last_token_that_is_no_padding():
    """Known by the padding's id where there is no mask."""
    model = load(ROOT / "llama-cls", np.float64)
    alone = Adapted(model).forward(batch(input_ids=[[5, 9, 3]])).logits
    padded = Adapted(model).forward(batch(input_ids=[[5, 9, 3, 0, 0]])).logits
    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-14)


def test_one_label_is_a_number_that_is_predicted():
    """Mean squares, and binary cross-entropy for several labels of floats: closed forms written apart."""
    model = load(ROOT / "llama-reward", np.float64)
    ids = [[5, 9, 3], [7, 8, 4]]
    found = Adapted(model).forward(batch(input_ids=ids, labels=[0.5, -1.0]))
    np.testing.assert_allclose(found.loss, np.mean((found.logits[:, 0] - [0.5, -1.0]) ** 2), rtol=1e-14)
    model = load(ROOT / "llama-cls", np.float64)
    y = np.array([[0.0, 1, 1, 0], [1, 0, 0, 0]])
    found = Adapted(model).forward(batch(input_ids=ids, labels=y))
    p = 1 / (1 + np.exp(-found.logits))
    np.testing.assert_allclose(found.loss, -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rtol=1e-13)
    with pytest.raises(Bad, match="labels: expected shape"):
        Adapted(model).forward(batch(input_ids=ids, labels=y[:, :3]))


def test_an_adapter_of_vit_under_its_older_names(tmp_path):
    """As transformers 4 called the modules: the same numbers as under those of transformers 5."""
    from minipeft.interop.peft.reading import load_peft

    home = ROOT.parent / "peft" / "vit"
    shutil.copytree(home / "lora-vit" / "adapter", tmp_path / "adapter")
    older = [(".layers.", ".encoder.layer."), ("attention.q_proj", "attention.attention.query"), ("attention.v_proj", "attention.attention.value"), ("mlp.fc2", "output.dense")]  # fmt: skip
    tensors = read_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    for new, old in older:
        tensors = {k.replace(new, old): v for k, v in tensors.items()}
    write_tensors(tmp_path / "adapter" / "adapter_model.safetensors", tensors)
    place = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(place.read_text()) | dict(target_modules=r".*(query|value|\d\.output\.dense)")
    place.write_text(json.dumps(config))
    pixels = np.random.default_rng(0).standard_normal((2, 3, 12, 12))
    model = load(home / "base", np.float64)
    outs = [load_peft(model, p).forward(batch(pixel_values=pixels)).logits for p in (home / "lora-vit" / "adapter", tmp_path / "adapter")]  # fmt: skip
    np.testing.assert_array_equal(*outs)
    assert abs(outs[0] - Adapted(model).forward(batch(pixel_values=pixels)).logits).max() > 0.1


JUNK = (10**9, 10**12, 10**400, -(10**400), -1, 0, 1.5, 1e300, True, "8", "", [], [[1]], {}, {"0": [1]}, {"rope_type": []},
        {"type": "linear", "factor": 10**400}, {"rope_type": "yarn"}, {"quant_method": [1]})  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_junk_in_any_field_is_one_line_or_is_read(name):
    """No number is too long, no value of too odd a kind; nothing of the size that a field claims is made."""
    began = time.process_time()
    for field in sorted({*OF_ALL, *fields(CONFIGS[name]).read} - {"model_type"}):
        for value in JUNK:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    read_arch(CONFIGS[name] | {field: value}, {field: value})
                except Bad as why:
                    assert "\n" not in str(why) and len(str(why)) < 500
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", in_turn(CONFIGS, every=4))
def test_what_a_configuration_claims_is_not_made(name, tmp_path):
    """Every count of a configuration, at what no model has: the folder is refused, or read, within a second."""
    shutil.copytree(ROOT / name, tmp_path / "base")
    kinds = fields(CONFIGS[name]).read
    for field in [f for f, kind in kinds.items() if kind.fits(1) and not kind.fits("")]:
        for value in (limits.LAYERS, limits.WHOLE) if field == "num_hidden_layers" else (limits.WHOLE,):
            (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIGS[name] | {field: value}))
            began = time.process_time()
            try:
                load(tmp_path / "base")
            except Bad as why:
                assert "\n" not in str(why)
            assert time.process_time() - began < 1, (field, value)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("llama", dict(num_hidden_layers=10**9), r"num_hidden_layers: expected a whole number in 0 … 4,096, found 1000000000"),
        ("qwen2", dict(num_hidden_layers=10**9, layer_types=None), "num_hidden_layers: expected a whole number"),
        ("t5", dict(num_decoder_layers=10**9), "num_decoder_layers: expected a whole number in 1 … 4,096"),
        ("llama", dict(rms_norm_eps=10**400), r"rms_norm_eps: expected a number above 0, found 1000\d*…"),
        ("llama", dict(rope_scaling={"rope_type": []}), r"rope scaling \[\] is not supported"),
        ("bert", dict(id2label={"a": "b"}), "id2label: expected an object from numbers to the labels' names"),
        ("bert", dict(id2label={"0": {}}), "id2label: expected an object from numbers"),
        ("bert", dict(id2label={"1": "a", "01": "b"}), "id2label: expected an object from numbers"),
        ("gpt2", dict(vocab_size=10**12), "vocab_size: expected a whole number"),
        ("gpt2", dict(eos_token_id=list(range(10**5))), "eos_token_id: expected a token id or a list of them"),
    ],
)  # fmt: skip
def test_values_that_no_model_has(name, change, says):
    with pytest.raises(Bad, match=says) as told:
        read_arch(CONFIGS[name] | change)
    assert len(str(told.value)) < 300


def test_names_of_tensors_that_are_none(tmp_path):
    """Wrappers alone, an empty word, axes that a layout has not: a line each."""
    for name, (key, shape), says in [
        ("gpt2", ("_orig_mod", (1,)), "not known to gpt2"),
        ("gpt2", ("", (1,)), "not known to gpt2"),
        ("vit", ("vit.embeddings.patch_embeddings.projection.weight", ()), "expected shape"),
        ("vit", ("vit.embeddings.patch_embeddings.projection.weight", (0, 2)), "expected shape"),
        ("vit", ("vit.embeddings.position_embeddings", (2, 3, 4)), "expected shape"),
    ]:
        folder = shutil.copytree(ROOT / name, tmp_path / f"{name}{len(list(tmp_path.iterdir()))}")
        tensors = read_tensors(folder / "model.safetensors")
        write_tensors(folder / "model.safetensors", tensors | {key: np.zeros(shape, np.float32)})
        with pytest.raises(Bad, match=says):
            load(folder)


def test_more_tensors_than_a_model_has(tmp_path):
    folder = shutil.copytree(ROOT / "gpt2", tmp_path / "base")
    tensors = read_tensors(folder / "model.safetensors")
    write_tensors(folder / "model.safetensors", tensors | {f"x.{n}": np.zeros(0) for n in range(20_000)})
    with pytest.raises(Bad, match=r"expected at most 1,\d+ tensors, as config.json tells of \d layers, found 20,\d+"):
        load(folder)
