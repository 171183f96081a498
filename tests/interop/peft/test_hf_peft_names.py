"""Configurations of PEFT drawn at random: what PEFT makes of them on a model of transformers, it is here too.

Which modules are adapted, by which rank and scale; which are saved whole; what of the base comes with the file: heads, and
token tables of a resized vocabulary; adapters of a bare model. Logits in float64, read again by PEFT from its own file.
"""

import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from minipeft.adapted import Adapted
from minipeft.checkpoints import load
from minipeft.errors import Bad
from minipeft.interop.peft.names import Naming, targeted
from minipeft.interop.peft.reading import load_peft
from minipeft.interop.peft.writing import save_peft
from minipeft.model.batch import batch

pytestmark = pytest.mark.hf
RECORD = Path(__file__).parents[2] / "record"
VOCAB = 37
SMALL = dict(
    vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager", use_cache=False
)
BODY = SMALL | dict(
    hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=40
)
LLAMA = BODY | dict(num_key_value_heads=2, num_labels=3)
T5 = SMALL | dict(
    d_model=16, d_kv=4, num_heads=4, d_ff=20, num_layers=2, num_decoder_layers=2, decoder_start_token_id=0,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip
HEADS = {"lm": "ForCausalLM", "cls": "ForSequenceClassification", "tok": "ForTokenClassification", "bare": "Model"}
MLM = HEADS | {"lm": "ForMaskedLM"}
# family -> the class of its configuration, its settings, the ends of its models' names, its linears, layers, table and head
FAMILIES = {
    "llama": ("Llama", LLAMA | dict(tie_word_embeddings=False), HEADS, "q_proj k_proj v_proj o_proj gate_proj down_proj", "layers", "embed_tokens", "lm_head"),
    "llama tied": ("Llama", LLAMA | dict(tie_word_embeddings=True), HEADS, "q_proj v_proj self_attn.k_proj up_proj", "layers", "embed_tokens", "lm_head"),
    "gpt2": ("GPT2", SMALL | dict(n_embd=16, n_layer=2, n_head=4, n_positions=32, num_labels=3), HEADS | {"lm": "LMHeadModel"},
             "c_attn c_proj c_fc attn.c_proj", "h", "wte", "lm_head"),
    "bert": ("Bert", BODY | dict(num_labels=3), MLM, "query key value dense attention.output.dense", "layer", "word_embeddings", "decoder"),
    "roberta": ("Roberta", BODY | dict(num_labels=3), MLM, "query key value dense intermediate.dense", "layer", "word_embeddings", "decoder"),
    "t5": ("T5", T5, {"lm": "ForConditionalGeneration"}, "q k v o wi wo SelfAttention.q EncDecAttention.v", "block", "shared", "lm_head"),
}  # fmt: skip
EXPRESSIONS = {
    "llama": [r".*\.(0|1)\.self_attn\.(q|v)_proj", r"(?i).*Q_PROJ", r"^model\.layers\.1\..*_proj$", r"^layers\.0\..*_proj$"],
    "gpt2": [r".*h\.0\..*c_attn", r"^transformer\.h\.1\.mlp\.c_fc", r"^h\.1\.mlp\.c_fc"],
    "bert": [r".*layer\.1\..*query", r"(?i).*\.KEY", r"^encoder\.layer\.0\..*value", r"^(ro)?berta?\.encoder\.layer\.0\..*value"],
    "t5": [r"decoder\..*\.(q|v)", r"encoder\..*\.(q|v)", r"decoder.block.0.layer.0.SelfAttention.q", r".*layer\.0\.SelfAttention\.q"],
}  # fmt: skip
EXPRESSIONS |= {"llama tied": EXPRESSIONS["llama"], "roberta": EXPRESSIONS["bert"]}
TASKS = {"cls": "SEQ_CLS", "tok": "TOKEN_CLS"}


@pytest.fixture(scope="module")
def hf():
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, str(RECORD))
    import float64

    yield float64
    sys.path.remove(str(RECORD))


def model_class(family, head):
    import transformers

    return getattr(transformers, FAMILIES[family][0] + FAMILIES[family][2][head])


def configuration(family):
    import transformers

    return getattr(transformers, f"{FAMILIES[family][0]}Config")(**FAMILIES[family][1])


def noise(parameters, seed, size=0.25):
    import torch

    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(size * torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype))


def drawn(rng, family, head):
    """The options of a LoraConfig. PEFT writes dictionaries in the order of their keys, and so are they here."""
    _, _, _, linears, layers, table, output = FAMILIES[family]
    linears = linears.split()
    options = dict(r=2, lora_alpha=5, fan_in_fan_out=family == "gpt2")
    options["target_modules"] = rng.choice([
        rng.sample(linears, rng.randint(1, 3)), "all-linear", rng.choice(EXPRESSIONS[family]),
        [rng.choice(linears), table], [rng.choice(linears), table, output],
    ])  # fmt: skip
    if rng.random() < 0.3:
        options["exclude_modules"] = rng.choice([rng.sample(linears, 1), rng.choice(EXPRESSIONS[family])])
    if rng.random() < 0.3 and not isinstance(options["target_modules"], str):
        options["layers_to_transform"] = rng.choice([[0], 1, [0, 1]])
        options["layers_pattern"] = rng.choice([None, layers, [layers]])
    for name, value in (("rank_pattern", 3), ("alpha_pattern", 11)):
        if rng.random() < 0.4:
            keys = sorted(rng.sample([*linears, *EXPRESSIONS[family][:1], rf"{layers}\.1\..*"], 2))
            options[name] = {k: value + i for i, k in enumerate(keys)}
    if rng.random() < 0.3:
        options["modules_to_save"] = [rng.choice([table, linears[0], *([output] if head == "lm" else [])])]
    if rng.random() < 0.15:
        options["trainable_token_indices"] = rng.choice([[3, 5], {table: [3, 5]}])
    if rng.random() < 0.2:
        options["use_dora"] = True
    if rng.random() < 0.2:
        options["bias"] = rng.choice(["all", "lora_only"])
    if head in TASKS:
        options["task_type"] = TASKS[head]
    return options


def inputs(family, rows):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, rows, (2, 7))
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    given = dict(input_ids=ids * mask, attention_mask=mask)
    return given | (dict(labels=rng.integers(3, rows, (2, 4))) if family == "t5" else {})


def computed(adapted, given):
    out = adapted.forward(batch(**given))
    return np.asarray(out.hidden if adapted.model.arch.head == "none" else out.logits)


@pytest.mark.parametrize("seed", range(60))
def test_a_drawn_adapter_computes_the_same(seed, hf, tmp_path):
    """A base is written, perhaps trained with another head or another vocabulary, and read again by both."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import layer as lora_layer

    rng = random.Random(seed)
    family = list(FAMILIES)[seed % len(FAMILIES)]
    heads = list(FAMILIES[family][2])
    base, head = rng.choice(heads), rng.choice(heads)
    if head == "bare" and rng.random() < 0.5:  # on another base its hidden states are not shown
        base = "bare"
    rows = rng.choice([VOCAB, VOCAB, VOCAB - 5, VOCAB + 4])
    options = drawn(rng, family, head)
    torch.manual_seed(seed)

    def read():
        model = model_class(family, head).from_pretrained(
            tmp_path / "base", dtype=torch.float64, attn_implementation="eager"
        )
        if rows != VOCAB:
            model.resize_token_embeddings(rows, mean_resizing=False)
        return model.eval()

    with hf.as_float64(lora_layer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(family, base)(configuration(family)).double()
        noise(model.parameters(), seed)
        model.save_pretrained(tmp_path / "base")
        model = read()
        noise([model.get_input_embeddings().weight] if rows != VOCAB else [], seed + 1)
        try:
            adapted = get_peft_model(model, LoraConfig(**options)).eval()
            noise([p for p in adapted.parameters() if p.requires_grad], seed + 2)
            adapted.save_pretrained(tmp_path / "adapter")
            theirs = PeftModel.from_pretrained(read(), tmp_path / "adapter").double().eval()
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as why:
            pytest.skip(f"PEFT makes no adapter of it or does not read it: {why}")
        given = inputs(family, rows)
        with torch.no_grad():
            out = theirs(**{k: torch.tensor(v) for k, v in given.items()})
        want = (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()
    bare = load(tmp_path / "base", np.float64)
    try:
        ours = load_peft(bare, tmp_path / "adapter")
    except Bad as why:
        told = ("which is neither in the adapter nor in the base", "checkpoint has no ", "names a module this")
        assert any(t in str(why) for t in told) and base != head, why  # a head that is nowhere
        pytest.skip(str(why))
    got = computed(ours, given)
    if got.shape != want.shape:
        assert base != head  # the file does not tell the head: that of the base is computed
        pytest.skip("another head")
    off = abs(got - want)
    if got.ndim == 3 and family != "t5":
        off = off * given["attention_mask"][:, :, None]
    assert off.max() <= 1e-11 * abs(want).max(), (family, base, head, rows, options)
    save_peft(ours, tmp_path / "again")
    assert (computed(load_peft(bare, tmp_path / "again"), given) == got).all()


PLACES = [  # family, the head of the base's file, the model that is adapted, options
    ("bert", "lm", "lm", dict(modules_to_save=["decoder"])),
    ("bert", "lm", "lm", dict(modules_to_save=["decoder"], bias="all")),
    ("roberta", "lm", "lm", dict(modules_to_save=["decoder", "word_embeddings"], bias="all")),
    ("bert", "lm", "lm", dict(bias="all", trainable_token_indices={"decoder": [3, 4]})),
    ("roberta", "lm", "lm", dict(target_modules=["query", "decoder"], bias="all", trainable_token_indices={"word_embeddings": [3, 4]})),
    ("bert", "lm", "lm", dict(target_modules=["query", "decoder"], bias="lora_only", trainable_token_indices={"word_embeddings": [3, 4]})),
    ("llama tied", "lm", "lm", dict(trainable_token_indices={"lm_head": [3, 4]})),
    ("bert untied", "lm", "lm", dict(bias="all", modules_to_save=["decoder"])),
    ("bert untied", "lm", "lm", dict(bias="all", trainable_token_indices={"decoder": [3, 4]})),
    ("bert", "pre", "pre", dict(target_modules="all-linear", bias="all")),
    ("bert", "pre", "pre", dict(modules_to_save=["seq_relationship"])),
    ("vit", "bare", "bare", dict(target_modules="all-linear", bias="all")),
    ("vit", "bare", "bare", dict(modules_to_save=["pooler"])),
    ("llama", "bare", "lm", dict(target_modules=["q_proj", "lm_head"])),
    ("llama", "cls", "lm", dict(target_modules=["q_proj", "lm_head"])),
    ("t5", "lm", "lm", dict(modules_to_save=["shared", "lm_head"], rows=VOCAB - 4)),
    ("t5", "bare", "bare", "prompt"),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(PLACES)))
def test_adapters_at_heads_and_at_what_nothing_reads(place, hf, tmp_path):
    """PEFT's file read here, written again and read again by both: the same numbers."""
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
    from peft.tuners.lora import layer as lora_layer

    family, head, trained, options = PLACES[place]
    untied = family == "bert untied"
    family = "bert" if untied else family
    end = {"pre": "ForPreTraining", "bare": "Model", "lm": "ForConditionalGeneration" if family == "t5" else ""}
    settings = FAMILIES.get(family, ("ViT", dict(BODY, image_size=8, patch_size=4)))
    options = dict(options) if options != "prompt" else options
    rows = options.pop("rows", 0) if options != "prompt" else 0
    names = {"llama": ["q_proj"], "llama tied": ["q_proj"], "t5": ["q"], "vit": ["q_proj"]}.get(family, ["query"])

    def cls(h):
        return getattr(transformers, settings[0] + (end.get(h) or settings[2][h]))

    def read():
        model = cls(trained).from_pretrained(tmp_path / "base", dtype=torch.float64, attn_implementation="eager")
        if rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
            noise([model.get_input_embeddings().weight], 7)
        return model.eval()

    def computed_by_peft(folder):
        model = PeftModel.from_pretrained(read(), folder).double().eval()
        with torch.no_grad():
            out = model(**{k: torch.tensor(v) for k, v in given.items()})
        y = next(out[k] for k in ("logits", "prediction_logits", "last_hidden_state") if k in out)
        return y.numpy()

    if family == "vit":
        given = dict(pixel_values=np.random.default_rng(0).standard_normal((2, 3, 8, 8)))
    else:
        given = inputs(family, VOCAB - 4) | dict(attention_mask=np.ones((2, 7), int))
    if (family, head) == ("t5", "bare"):
        given["decoder_input_ids"] = given.pop("labels")
    with hf.as_float64(lora_layer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = getattr(transformers, f"{settings[0]}Config")(
            **settings[1] | (dict(tie_word_embeddings=False) if untied else {})
        )
        model = cls(head)(config).double()
        noise(model.parameters(), 0)
        model.save_pretrained(tmp_path / "base")
        torch.manual_seed(1)
        made = (
            PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
            if options == "prompt"
            else LoraConfig(r=2, lora_alpha=5, **dict(target_modules=names) | options)
        )
        adapted = get_peft_model(read(), made).eval()
        noise([p for p in adapted.parameters() if p.requires_grad], 1)
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True if rows else "auto")
        want = computed_by_peft(tmp_path / "adapter")
        base = load(tmp_path / "base", np.float64)
        ours = load_peft(base, tmp_path / "adapter")
        save_peft(ours, tmp_path / "again")
        exact = 1e-6 if options == "prompt" else 1e-11  # PEFT reads prompts into float32
        for got in (
            computed(ours, given),
            computed(load_peft(base, tmp_path / "again"), given),
            computed_by_peft(tmp_path / "again"),
        ):
            assert abs(got - want).max() <= exact * abs(want).max()


@pytest.mark.parametrize("head", ["lm", "cls", "tok"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
def test_an_adapter_of_the_bare_model_on_a_base_with_a_head(family, head, hf, tmp_path):
    """The witness is the model with the head, its body replaced by PEFT's."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets = {"llama": r"^layers\.1\..*(q|up)_proj", "gpt2": r"^h\.\d\.attn\.c_attn"}.get(
        family, r"^encoder\.layer\.0\..*(query|dense)"
    )
    with hf.as_float64():
        torch.manual_seed(0)
        model = model_class(family, head)(configuration(family)).double().eval()
        noise(model.parameters(), 0)
        model.save_pretrained(tmp_path / "base")
        body = get_peft_model(
            model.base_model, LoraConfig(r=2, target_modules=targets, fan_in_fan_out=family == "gpt2")
        )
        noise([p for p in body.parameters() if p.requires_grad], 1)
        body.save_pretrained(tmp_path / "adapter")
        given = inputs(family, VOCAB)
        with torch.no_grad():  # PEFT puts its layers into the body, and thereby into the model
            want = model.eval()(**{k: torch.tensor(v) for k, v in given.items()}).logits.numpy()
    base = load(tmp_path / "base", np.float64)
    adapted = load_peft(base, tmp_path / "adapter")
    off = abs(computed(adapted, given) - want)
    off = off * given["attention_mask"][:, :, None] if off.ndim == 3 else off
    assert off.max() <= 1e-11 * abs(want).max()
    assert abs(computed(adapted, given) - computed(Adapted(base), given)).max() > 1e-3 * abs(want).max()


@pytest.mark.parametrize("head", ["lm", "bare", "cls"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_modules_that_peft_s_rules_name(family, head, tmp_path):
    """PEFT's own function, asked of every linear and table of a model of transformers, for many configurations."""
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
    from transformers.pytorch_utils import Conv1D

    if head not in FAMILIES[family][2]:
        pytest.skip("no such head")
    model = model_class(family, head)(configuration(family))
    model.save_pretrained(tmp_path)
    naming = Naming(load(tmp_path), head == "bare")
    names = naming.modules()
    theirs = [
        n
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear | torch.nn.Embedding | Conv1D) and n in names
    ]
    assert set(names) - {"lm_head"} <= set(theirs) | {"lm_head"} and len(theirs) > 8
    rng, some = random.Random(0), 0
    for _ in range(150):
        options = drawn(rng, family, head)
        options.pop("trainable_token_indices", None)
        config = LoraConfig(**options)
        if config.task_type in TASKS.values():  # as PeftModel does
            config.modules_to_save = [*(config.modules_to_save or ()), "classifier", "score"]
        config = _maybe_include_all_linear_layers(config, model)
        expected = {names[n] for n in theirs if check_target_module_exists(config, n)}
        assert targeted(options, naming) == expected, options
        some += bool(expected)
    assert some > 75
