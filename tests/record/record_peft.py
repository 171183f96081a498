"""Records what Hugging Face PEFT computes, as cases to replay: `python tests/record/record_peft.py [BASE/CASE ...]`.

Writes tests/data/peft/<base>/base/, a tiny checkpoint, and for every case <base>/<case>/adapter/, as PEFT saved it, and
expected.safetensors: inputs, logits, loss and gradients. These are computed in float64 from the checkpoint read back, with
the libraries' own casts to float32 redirected (see `as_float64`). Running it again gives the same bytes.

Cases of one method alone, and those on convolutions, are in peft/<method>.py: `cases(on)` lists `on.<base>(name, config, padding, …)`, and DOWNCASTING the modules
of PEFT that cast to float32.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if os.environ.get("PYTHONHASHSEED") != "0":  # PEFT writes sets (target_modules) in hash order
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
warnings.filterwarnings("ignore")

import peft  # noqa: E402
import torch  # noqa: E402
import transformers as tf  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from peft.tuners.adaption_prompt import layer as adaption_layer  # noqa: E402
from peft.tuners.adaption_prompt import utils as adaption_utils  # noqa: E402
from peft.tuners.lora import layer as lora_layer  # noqa: E402
from peft.tuners.osf import utils as osf_utils  # noqa: E402
from peft_computes import expected  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

torch.set_num_threads(1)


def methods_own() -> list[Any]:
    """The files of methods, as modules."""
    found = []
    for path in sorted((Path(__file__).parent / "peft").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"recorded_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    return found


OWN = methods_own()
DOWNCASTING = (
    adaption_layer, adaption_utils, lora_layer, osf_utils, *(m for own in OWN for m in getattr(own, "DOWNCASTING", ()))
)  # fmt: skip
ROOT = Path(__file__).parents[1] / "data" / "peft"
VOCAB = 43
BY_TASK = ("POLY", "MULTITASK_PROMPT_TUNING")  # methods that need task_ids
Tensors = dict[str, torch.Tensor]

# --- bases: sizes differ from one another wherever the architecture lets them ------------------------------------------

COMMON = dict(
    vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager", use_cache=False
)
LLAMA = COMMON | dict(
    hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
)  # fmt: skip
BASES: dict[str, tuple[Any, Any, str | None]] = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**LLAMA), "CAUSAL_LM"),
    "llama-tied": (tf.LlamaForCausalLM, tf.LlamaConfig(**LLAMA | dict(tie_word_embeddings=True)), "CAUSAL_LM"),
    "llama-cls": (tf.LlamaForSequenceClassification, tf.LlamaConfig(**LLAMA, num_labels=3), "SEQ_CLS"),
    "gpt2": (
        tf.GPT2LMHeadModel,
        tf.GPT2Config(**COMMON, n_embd=20, n_layer=2, n_head=4, n_inner=28, n_positions=24),
        "CAUSAL_LM",
    ),
    "bert-cls": (
        tf.BertForSequenceClassification,
        tf.BertConfig(
            **COMMON, hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=24, num_labels=3,
        ),
        "SEQ_CLS",
    ),
    "t5": (
        tf.T5ForConditionalGeneration,
        tf.T5Config(
            **COMMON, d_model=16, d_kv=4, num_heads=4, d_ff=22, num_layers=2, num_decoder_layers=2, decoder_start_token_id=0,
            relative_attention_num_buckets=8, relative_attention_max_distance=12,
        ),
        "SEQ_2_SEQ_LM",
    ),
    "vit-channels": (
        tf.ViTForImageClassification,
        tf.ViTConfig(
            hidden_size=20, num_hidden_layers=2, num_attention_heads=4, intermediate_size=28, image_size=6, patch_size=3,
            num_channels=6, num_labels=5,
        ),
        None,
    ),
}  # fmt: skip
RECORDED = {  # bases that stay as they are
    "vit": (tf.ViTForImageClassification, None, None),
    "mistral": (tf.MistralForCausalLM, None, "CAUSAL_LM"),
}
WORDS = {"mistral": 37}  # of a base with another vocabulary
BASES |= RECORDED
PADDING = dict.fromkeys(BASES, "none") | {
    "bert-cls": "right",
    "llama-cls": "right",
    "t5": "right",
}  # unless said otherwise


def generator(*what: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32("/".join(what).encode()))


def jitter(named: Any, size: float, rng: torch.Generator) -> None:
    """Add noise to every parameter, so that no zero, one or equal value hides a mistake."""
    with torch.no_grad():
        for _, p in sorted(named, key=lambda item: item[0]):
            p.add_(size * torch.randn(p.shape, generator=rng).to(p.dtype))


def record_base(base: str) -> None:
    cls, config, _ = BASES[base]
    torch.manual_seed(0)
    model = cls(config)
    jitter(model.named_parameters(), 0.2, generator(base))
    shutil.rmtree(ROOT / base / "base", ignore_errors=True)
    model.save_pretrained(ROOT / base / "base")
    (ROOT / base / "base" / "generation_config.json").unlink(missing_ok=True)


def load_base(base: str, dtype: torch.dtype, case: Case | None = None) -> Any:
    cls, more = BASES[base][0], {}
    if case and case.cls:
        cls, more = case.cls, dict(num_labels=3)
    torch.manual_seed(2)  # a classifier that the base has not is drawn
    model = cls.from_pretrained(ROOT / base / "base", dtype=dtype, attn_implementation="eager", **more)
    if case and case.rows:
        model.resize_token_embeddings(case.rows, mean_resizing=False)
    if case and case.config.peft_type == "XLORA":  # which PEFT asks for
        model.config.use_cache = False
    model.name_or_path = model.config._name_or_path = ""  # no path of this machine in adapter_config.json
    return model.eval()


# --- inputs -------------------------------------------------------------------------------------------------------------


IMAGES = {"vit": (3, 12, 12), "vit-channels": (6, 6, 6)}


def inputs(base: str, padding: str, task_ids: bool, task: str, vocabulary: int) -> Tensors:
    """Batch 3, length 7; `padding` is left, right or none. Images are a batch of 2."""
    rng = generator("inputs", base)
    if base in IMAGES:
        return dict(pixel_values=torch.randn(2, *IMAGES[base], generator=rng), labels=torch.tensor([4, 1]))
    ids = torch.randint(3, vocabulary, (3, 7), generator=rng)
    mask = torch.ones_like(ids)
    for row, pads in enumerate((2, 0, 3) if padding != "none" else ()):
        mask[row, : pads if padding == "left" else 0] = 0
        mask[row, 7 - pads if padding == "right" else 7 :] = 0
    ids = ids * mask  # the pad token is 0
    if task == "TOKEN_CLS":
        labels = torch.randint(0, 3, (3, 7), generator=rng).masked_fill(mask == 0, -100)
    elif task == "SEQ_CLS":
        labels = torch.tensor([2, 0, 1])
    elif task == "SEQ_2_SEQ_LM":
        labels = torch.randint(3, VOCAB, (3, 5), generator=rng)
        labels[0, 3:] = labels[2, 4:] = -100
    else:
        labels = ids.masked_fill(mask == 0, -100)
        labels[0, 3] = labels[1, 5] = -100
        # what padding on the left predicts: it sees no token, and torch's gradient there is not that of what it computes
        labels[:, 1:] = labels[:, 1:].masked_fill(mask[:, :-1] == 0, -100)
    out = dict(input_ids=ids, attention_mask=mask, labels=labels)
    return out | (dict(task_ids=torch.tensor([2, 0, 1])) if task_ids else {})


# --- cases --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One adapter on one base."""

    base: str
    name: str
    config: Any
    padding: str = "none"
    size: float = 0.3  # of the noise that stands for training
    before: Callable[[Any, Tensors], None] | None = None  # done to the base before the adapter is put on
    after: Callable[[Any, Tensors], None] | None = None  # done to the adapted model before the noise
    build: Callable[[Case, Path], None] | None = None  # saves the adapter by other means
    cls: Any = None  # the model that is trained, if it has another head than the base
    rows: int = 0  # of the vocabulary, if it is resized
    remade: str = "-"  # the end of keys whose tensors PEFT makes others of when it reads
    converted: bool = False  # saved as plain LoRA of twice the rank: what it began as is subtracted

    @property
    def is_prompt(self) -> bool:
        return self.config.is_prompt_learning

    @property
    def inputs(self) -> Tensors:
        task = self.config.task_type if self.cls else BASES[self.base][2]
        return inputs(
            self.base, self.padding, self.config.peft_type in BY_TASK, task, self.rows or WORDS.get(self.base, VOCAB)
        )


def trainable(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def save_adapter(case: Case, folder: Path) -> None:
    model = load_base(case.base, torch.float32, case)
    torch.manual_seed(zlib.crc32(case.name.encode()))
    if case.before:
        case.before(model, case)
    model = get_peft_model(model, case.config).eval()
    if case.after:
        case.after(model, case)
    with tempfile.TemporaryDirectory() as began:
        options = {}
        if case.converted:
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(f"{began}/first")
            options = dict(path_initial_model_for_weight_conversion=f"{began}/first")
        jitter(trainable(model), case.size, generator(case.base, case.name))
        model.save_pretrained(folder, save_embedding_layers=True if case.rows else "auto", **options)


def expect(case: Case, folder: Path) -> Tensors:
    """Inputs, logits, loss and gradients, from the checkpoint in `folder`."""
    config = peft.PeftConfig.from_pretrained(folder)
    if (
        case.config.peft_type == "XLORA"
    ):  # PEFT looks for experts where the configuration says, from the working directory
        config.adapters = {k: str(folder / v) for k, v in config.adapters.items()}
    # PEFT adds AdaLoRA's penalty to the loss, in eval mode too; one case has the loss of the task alone
    return expected(
        lambda: load_base(case.base, torch.float64, case), folder, case.inputs, DOWNCASTING, config, case.remade,
        task_loss=case.name == "adalora",
    )  # fmt: skip


def record(case: Case) -> None:
    folder = ROOT / case.base / case.name
    shutil.rmtree(folder, ignore_errors=True)
    (case.build or save_adapter)(case, folder / "adapter")
    for readme in folder.rglob("README.md"):
        readme.unlink()
    save_file(expect(case, folder / "adapter"), folder / "expected.safetensors")


# --- what some methods need before or after they are put on ------------------------------------------------------------


def eva_init(model: Any, case: Case) -> None:
    data = [dict(input_ids=torch.randint(3, VOCAB, (3, 7)), attention_mask=torch.ones(3, 7)) for _ in range(4)]
    peft.initialize_lora_eva_weights(model, data, adapter_name="default", show_progress_bar=False)


def estimate_gradients(model: Any, case: Case) -> None:
    def step() -> None:
        model(**case.inputs).loss.backward()

    peft.tuners.lora.preprocess_loraga(model, case.config, step)


def allocate_ranks(model: Any, case: Case) -> None:
    """Train AdaLoRA until its budget is spent, so that rank_pattern masks some directions."""
    jitter(trainable(model), 0.3, generator("allocate"))
    for step in range(case.config.total_step):
        model.zero_grad()
        model(**case.inputs).loss.backward()
        model.base_model.update_and_allocate(step)


def save_xlora(case: Case, folder: Path) -> None:
    """Experts trained apart, then the gate. PEFT's saver drops every key that holds a number which is an expert's name,

    layers of the gate and of the experts among them, and cannot read what is left: here both are put back.
    """
    with tempfile.TemporaryDirectory() as trained:
        paths = {}
        for k in range(3):
            expert = LoraConfig(
                r=2 + k, lora_alpha=5 + k, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
            )
            paths[str(k)] = f"{trained}/{k}"
            save_adapter(Case(case.base, f"expert{k}", expert), Path(paths[str(k)]))
        case.config.adapters = paths
        torch.manual_seed(5)
        model = get_peft_model(load_base(case.base, torch.float32, case), case.config).eval()
        jitter(trainable(model), case.size, generator(case.name))
        model.save_pretrained(folder)
        gate = {k: v for k, v in model.state_dict().items() if "internal_xlora_classifier" in k}
        save_file(gate, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        for k, path in paths.items():
            shutil.copytree(path, folder / k, dirs_exist_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["adapters"] = {k: k for k in paths}  # PEFT writes where the experts lay; reading looks in the sub-folders
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**dict(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") | options)


def on(task: str, cls: Any, **options: Any) -> Any:
    return cls(task_type=task, **options)


class On:
    """`on.llama(name, PeftConfig, padding="left", **options)`: a case on a base of this name; `-` is written `_`."""

    def __getattr__(self, base: str) -> Callable[..., Case]:
        base = base.replace("_", "-")

        def case(name: str, cls: Any, padding: str = PADDING[base], case: Any = (), **options: Any) -> Case:
            return Case(base, name, cls(task_type=BASES[base][2], **options), padding, **dict(case))

        return case


def cases() -> list[Case]:
    lm, cls, s2s = "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM"
    qv = ["q_proj", "v_proj"]
    trained_ids = [3, 7, 19]

    def llama(name: str, config: Any, padding: str = "none", **kw: Any) -> Case:
        return Case("llama", name, config, padding, **kw)

    def bert(name: str, config: Any, **kw: Any) -> Case:
        return Case("bert-cls", name, config, "right", **kw)

    def gpt2(name: str, config: Any, padding: str = "none", **kw: Any) -> Case:
        return Case("gpt2", name, config, padding, **kw)

    def t5(name: str, config: Any, **kw: Any) -> Case:
        return Case("t5", name, config, "right", **kw)

    def llama_cls(name: str, config: Any, **kw: Any) -> Case:
        return Case("llama-cls", name, config, "right", **kw)

    fused, both = dict(target_modules=["c_attn"], fan_in_fan_out=True), ["embed_tokens", "lm_head"]
    bert_qv = dict(target_modules=["query", "value"], task_type=cls)
    out = [
        llama("lora", lora(), "left"),
        llama("lora-all-linear", lora(target_modules="all-linear", rank_pattern={"k_proj": 2, r"layers.1.mlp.up_proj": 4},
                                      alpha_pattern={"q_proj": 7, r"0.self_attn.v_proj": 2})),
        llama("lora-rslora", lora(use_rslora=True)),
        llama("lora-embedding", lora(target_modules=both), "left"),
        llama("lora-regex", lora(target_modules=r".*\.(0|1)\.(self_attn\.k_proj|mlp\.gate_proj)$")),
        llama("lora-layers-to-transform", lora(target_modules=["k_proj", "up_proj"], layers_to_transform=[1])),
        llama("lora-trainable-tokens", lora(trainable_token_indices={"embed_tokens": trained_ids})),
        llama("lora-modules-to-save", lora(modules_to_save=["lm_head"])),
        llama("lora-resized", lora(), "left", rows=VOCAB + 4),
        llama("lora-embedding-resized", lora(target_modules=both), rows=VOCAB - 5),
        llama("lora-trainable-tokens-resized", lora(trainable_token_indices={"embed_tokens": [3, VOCAB + 1]}), rows=VOCAB + 4),
        llama("lora-seq-cls", lora(task_type=cls), "right", cls=tf.LlamaForSequenceClassification),
        llama("lora-token-cls", lora(task_type="TOKEN_CLS"), cls=tf.LlamaForTokenClassification),
        gpt2("lora-resized-gpt2", lora(**fused), rows=VOCAB + 4),
        t5("lora-t5-decoder", lora(target_modules=r"decoder\..*\.(q|wo)", task_type=s2s)),
        t5("ia3-t5-decoder", on(s2s, peft.IA3Config, target_modules=["v", "wo"], feedforward_modules=r"decoder\..*\.wo")),
        t5("lora-t5-patterns", lora(target_modules=["q", "v"], layers_to_transform=[1], layers_pattern="block", task_type=s2s,
                                    rank_pattern={r"encoder.block.1.layer.0.SelfAttention.q": 2}, alpha_pattern={r"decoder.*\.q": 7})),
        llama("dora", lora(use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"]), "left"),
        llama("dora-embedding", lora(use_dora=True, target_modules=["embed_tokens", "k_proj"])),
        llama("pissa", lora(init_lora_weights="pissa", target_modules=["q_proj", "up_proj"])),
        llama("eva", lora(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=2.0), target_modules=["q_proj", "v_proj", "down_proj"]),
              after=eva_init),
        llama("lora-ga", lora(init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()), before=estimate_gradients),
        gpt2("lora-gpt2", lora(**fused), "left"),
        gpt2("lora-bias", lora(lora_bias=True, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
        gpt2("lora-bias-lora-only", lora(bias="lora_only", **fused)),
        gpt2("dora-gpt2", lora(use_dora=True, **fused)),
        bert("lora-bert-cls", lora(**bert_qv)),
        bert("lora-bias-all", lora(bias="all", **bert_qv)),
        bert("lora-bias-lora-only", lora(bias="lora_only", **bert_qv)),
        llama_cls("lora", lora(task_type=cls)),
        t5("lora-t5", lora(target_modules=["q", "v", "wi"], task_type=s2s)),
        llama("adalora", on(lm, peft.AdaLoraConfig, init_r=4, target_r=2, tinit=0, tfinal=1, total_step=6, deltaT=1, lora_alpha=5,
                            target_modules=["q_proj", "v_proj", "up_proj"]), after=allocate_ranks),
        llama("adalora-unmasked", on(lm, peft.AdaLoraConfig, init_r=3, target_r=2, total_step=9, lora_alpha=5, target_modules=qv)),
        llama("osf", on(lm, peft.OSFConfig, effective_rank=9, target_modules=["k_proj", "o_proj"])),
        llama("vera", on(lm, peft.VeraConfig, r=5, target_modules=["q_proj", "down_proj"], projection_prng_key=7), size=0.8),
        llama("vera-unsaved", on(lm, peft.VeraConfig, r=5, target_modules=["q_proj", "down_proj"], save_projection=False), size=0.8),
        llama("fourierft", on(lm, peft.FourierFTConfig, n_frequency=11, scaling=90.0, random_loc_seed=5, target_modules=qv)),
        llama("fourierft-pattern", on(lm, peft.FourierFTConfig, n_frequency=11, scaling=90.0, target_modules=["q_proj", "up_proj"],
                                      n_frequency_pattern={"up_proj": 6})),
    ]  # fmt: skip
    oft = dict(target_modules=["q_proj", "down_proj"])
    out += [
        llama("oft", on(lm, peft.OFTConfig, oft_block_size=4, **oft), size=0.1),
        llama("oft-exact", on(lm, peft.OFTConfig, oft_block_size=4, use_cayley_neumann=False, **oft)),
        llama("oft-terms", on(lm, peft.OFTConfig, oft_block_size=4, num_cayley_neumann_terms=3, **oft), size=0.1),
        llama("oft-shared", on(lm, peft.OFTConfig, oft_block_size=4, block_share=True, use_cayley_neumann=False, **oft)),
        llama("oft-coft", on(lm, peft.OFTConfig, oft_block_size=4, coft=True, eps=1.8, use_cayley_neumann=False, **oft)),
        llama("oft-blocks", on(lm, peft.OFTConfig, r=2, oft_block_size=0, use_cayley_neumann=False, **oft), size=0.15),
        llama("loha", on(lm, peft.LoHaConfig, r=3, alpha=5, target_modules=qv), "left"),
        llama("loha-pattern", on(lm, peft.LoHaConfig, r=3, alpha=5, target_modules=["q_proj", "k_proj", "up_proj"],
                                 rank_pattern={"k_proj": 2}, alpha_pattern={"up_proj": 7, "0.self_attn.q_proj": 4})),
        llama("lokr", on(lm, peft.LoKrConfig, r=1, alpha=5, decompose_both=True, decompose_factor=6, target_modules=qv), "left"),
        llama("lokr-pattern", on(lm, peft.LoKrConfig, r=1, alpha=5, target_modules=["q_proj", "k_proj", "up_proj"],
                                 rank_pattern={"k_proj": 7}, alpha_pattern={"up_proj": 7, "0.self_attn.q_proj": 4})),
        llama("ln-tuning", on(lm, peft.LNTuningConfig), "left"),
        bert("ln-tuning-bert", on(cls, peft.LNTuningConfig, target_modules=["output.LayerNorm"])),
        llama("ia3", on(lm, peft.IA3Config, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]), "left"),
        bert("ia3-bert", on(cls, peft.IA3Config, target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"])),
        gpt2("ia3-gpt2", on(lm, peft.IA3Config, target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True)),
        llama("shira", on(lm, peft.ShiraConfig, r=2, random_seed=11, target_modules=qv)),
        llama("shira-unseeded", on(lm, peft.ShiraConfig, r=2, target_modules=["v_proj", "down_proj"])),
        llama("trainable-tokens", on(lm, peft.TrainableTokensConfig, token_indices=trained_ids, target_modules=["embed_tokens"]), "left"),
        llama("adaption-prompt", on(lm, peft.AdaptionPromptConfig, adapter_len=3, adapter_layers=2), "left"),
        llama("adaption-prompt-last", on(lm, peft.AdaptionPromptConfig, adapter_len=4, adapter_layers=1)),
        gpt2("adaption-prompt-gpt2", on(lm, peft.AdaptionPromptConfig, adapter_len=3, adapter_layers=2)),
        llama("poly", on(lm, peft.PolyConfig, r=3, n_tasks=3, n_skills=2, target_modules=["q_proj", "down_proj"])),
        llama("poly-splits", on(lm, peft.PolyConfig, r=3, n_tasks=3, n_skills=3, n_splits=2, target_modules=["q_proj", "down_proj"])),
        llama("xlora", on(lm, peft.XLoraConfig, hidden_size=24), build=save_xlora),
        llama("xlora-deep", on(lm, peft.XLoraConfig, hidden_size=24, xlora_depth=2, xlora_size=5, layerwise_scalings=True,
                               softmax_temperature=0.7, global_scaling_weight=1.3, scaling_pass_value=0.5), build=save_xlora),
        Case("mistral", "xlora", on(lm, peft.XLoraConfig, hidden_size=36, xlora_depth=2, xlora_size=4, top_k_lora=2), build=save_xlora),
        llama("xlora-plain", on(lm, peft.XLoraConfig, hidden_size=24, xlora_depth=3, xlora_size=5, xlora_dropout_p=0.0, enable_softmax=False,
                                top_k_lora=2, use_trainable_adapters=True), "left", build=save_xlora),
        bert("adalora-bert", on(cls, peft.AdaLoraConfig, init_r=4, target_r=2, tfinal=1, total_step=6, lora_alpha=5, orth_reg_weight=0.1,
                           target_modules=["query", "output.dense"]), after=allocate_ranks),
        llama("xlora-topk", on(lm, peft.XLoraConfig, hidden_size=24, layerwise_scalings=True, top_k_lora=2, enable_softmax_topk=True),
              build=save_xlora),
    ]  # fmt: skip
    kinds = [
        ("llama", lm, "none"),
        ("gpt2", lm, "none"),
        ("bert-cls", cls, "right"),
        ("llama-cls", cls, "right"),
        ("t5", s2s, "right"),
    ]
    for base, task, padding in kinds:
        prompt, prefix = "prompt-tuning", "prefix-tuning"
        out += [
            Case(base, prompt, on(task, peft.PromptTuningConfig, num_virtual_tokens=3), padding),
            Case(base, prefix, on(task, peft.PrefixTuningConfig, num_virtual_tokens=3), padding),
            Case(base, f"{prefix}-projected", on(task, peft.PrefixTuningConfig, num_virtual_tokens=3, prefix_projection=True,
                                                 encoder_hidden_size=10), padding),
        ]  # fmt: skip
    mlp, lstm = "MLP", "LSTM"
    return [
        *out,
        *(case for own in OWN for case in own.cases(On())),
        llama("prompt-tuning-left", on(lm, peft.PromptTuningConfig, num_virtual_tokens=3), "left"),
        llama("prefix-tuning-left", on(lm, peft.PrefixTuningConfig, num_virtual_tokens=3), "left"),
        llama("p-tuning-mlp", on(lm, peft.PromptEncoderConfig, num_virtual_tokens=3, encoder_reparameterization_type=mlp, encoder_hidden_size=10)),
        llama("p-tuning-lstm", on(lm, peft.PromptEncoderConfig, num_virtual_tokens=3, encoder_reparameterization_type=lstm,
                                  encoder_hidden_size=10, encoder_num_layers=1, encoder_dropout=0.0)),
    ]  # fmt: skip


def main(wanted: list[str]) -> None:
    if not wanted:
        for base in BASES.keys() - RECORDED.keys():  # the others were recorded elsewhere
            shutil.rmtree(ROOT / base, ignore_errors=True)
            record_base(base)
    for case in cases():
        if not wanted or f"{case.base}/{case.name}" in wanted:
            record(case)


if __name__ == "__main__":
    main(sys.argv[1:])
