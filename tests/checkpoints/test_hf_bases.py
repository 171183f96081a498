"""Bases against transformers, bitsandbytes and PEFT themselves."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from computed import held, ratios

from minipeft.checkpoints import FAMILIES, _family, load, read_arch
from minipeft.checkpoints.config import ACTS, NEEDED, Fields
from minipeft.checkpoints.files import read_json, write_json
from minipeft.engine import ops
from minipeft.engine.tensor import value_and_grad
from minipeft.engine.weight import form
from minipeft.interop.peft.reading import load_peft
from minipeft.model.activations import ACTIVATIONS
from minipeft.model.batch import batch

pytestmark = pytest.mark.hf
HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def four():
    sys.path.insert(0, str(HERE / "record"))
    import record_four_bits

    yield record_four_bits
    sys.path.remove(str(HERE / "record"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_transformers_is_accounted_for(family):
    """And what is taken where a field is absent is what transformers takes."""
    import transformers

    cls = type(transformers.AutoConfig.for_model(family))
    config = cls()
    known = {*config.to_dict(), *(f.name for f in dataclasses.fields(cls))}
    fields = _family(family).FIELDS
    fields = fields if isinstance(fields, Fields) else fields[family]
    assert not sorted(k for k in known - fields.names if not k.startswith("_"))
    derived = ("layer_types", "head_dim", "num_decoder_layers", "dense_act_fn", "is_gated_act", "scale_decoder_outputs", "rope_parameters",
               "rope_scaling", "rope_theta", "num_key_value_heads", "sliding_window")  # fmt: skip  # made of others, if absent
    for name, kind in fields.read.items():
        if kind.default is not NEEDED and name not in derived:
            assert getattr(config, name) == kind.default, name


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "bert", "roberta", "t5"])
def test_end_and_fill_tokens_are_those_of_transformers(family, tmp_path):
    """Without a generation_config.json, what stands in config.json counts, and no default of the family's."""
    import transformers

    name = {"bert": "bert-decoder", "roberta": "roberta-lm"}.get(family, family)
    given = read_json(HERE / "data" / "bases" / name / "config.json")
    cls = getattr(transformers, given["architectures"][0])
    for change in (
        {},
        {"eos_token_id": [3, 4]},
        {"eos_token_id": None},
        {"pad_token_id": 7},
        {"pad_token_id": 7, "eos_token_id": 5},
    ):
        for absent in ((), ("eos_token_id",), ("pad_token_id",), ("eos_token_id", "pad_token_id")):
            config = {k: v for k, v in (given | change).items() if k not in absent}
            write_json(tmp_path / "config.json", config)
            settings = transformers.GenerationConfig.from_pretrained(tmp_path, "config.json", _from_model_config=True)
            model = cls(cls.config_class(**config))
            model.generation_config = settings
            model._prepare_special_tokens(settings, kwargs_has_attention_mask=True, device="cpu")
            ends, fill = (None if x is None else x.tolist() for x in (settings._eos_token_tensor, settings._pad_token_tensor))  # fmt: skip
            arch = read_arch(config)
            assert (list(arch.eos_ids), arch.fill_id) == (ends or [], fill), (change, absent)


def test_activations_are_those_of_transformers():
    """Values and gradients of every one in its table, or it is refused."""
    import torch
    from transformers.activations import ACT2CLS, ACT2FN

    assert set(ACT2CLS) - set(ACTS) == {"laplace", "prelu", "xielu"}
    x = np.concatenate([np.linspace(-12.3, 12.3, 400), [-31.0, 0.03, 31.0]])
    for name in ACT2CLS.keys() & ACTS.keys():
        given = torch.tensor(x, requires_grad=True)
        want = ACT2FN[name](given)
        want.sum().backward()
        y, grads = value_and_grad(lambda t, f=ACTIVATIONS[ACTS[name]]: ops.sum(f(t["x"])))({"x": x})
        np.testing.assert_allclose(y, want.sum().item(), rtol=1e-13, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(grads["x"], given.grad.numpy(), rtol=1e-12, atol=1e-14, err_msg=name)
        got = ACTIVATIONS[ACTS[name]](x.astype(np.float32))
        assert getattr(got, "dtype", None) == np.float32, name


NAMES = ["llama", "llama-cls", "gpt2", "bert-cls", "bert-mlm", "roberta-cls", "t5", "t5-gated", "vit", "qwen2-windows"]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_four_bits_are_those_of_bitsandbytes(name, double, four, tmp_path):
    """The same modules in four bits, by our hand or in its file; and the file computes what transformers computes."""
    import torch

    base = four.bases.bases()[name]
    config = four.sized(base.config)
    options = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    four.quantised(base.cls, config, torch.float32, options, tmp_path)
    found = {k: v.numpy() for k, v in four.computed(base.cls, tmp_path / "twin", 1).items()}
    given = {k: v for k, v in found.items() if k not in ("logits", "loss") and not k.startswith("grad::")}
    ours, theirs = load(tmp_path / "plain", "nf4-double" if double else "nf4"), load(tmp_path / "four", np.float64)
    for k, W in ours.params.items():
        assert hasattr(W, "dequantize") == hasattr(theirs.params[k], "dequantize"), k
        if hasattr(W, "dequantize") and not double:
            np.testing.assert_array_equal(W.codes, theirs.params[k].codes)
            np.testing.assert_array_equal(W.absmax, theirs.params[k].absmax)
    assert held(ratios(theirs, given, {k: v for k, v in found.items() if k not in given}))


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_fp4_is_read_in_any_layout(name, four, tmp_path):
    """GPT-2's linears, which its own files hold as (in, out), are (out, in) in bitsandbytes' files."""
    import torch

    base = four.bases.bases()[name]
    four.quantised(base.cls, four.sized(base.config), torch.float32, dict(bnb_4bit_quant_type="fp4"), tmp_path)
    found = {k: v.numpy() for k, v in four.computed(base.cls, tmp_path / "twin", 1).items()}
    given = {k: v for k, v in found.items() if k not in ("logits", "loss") and not k.startswith("grad::")}
    model = load(tmp_path / "four", np.float64)
    assert {form(W) for W in model.params.values()} == {"", "fp4"}
    assert held(ratios(model, given, {k: v for k, v in found.items() if k not in given}))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert-cls"])
def test_a_qlora_adapter_of_peft_on_a_base_in_four_bits(name, four, tmp_path):
    """Made over linears in four bits, and read onto our base in four bits, from either kind of file."""
    import peft
    import torch
    import transformers

    base = four.bases.bases()[name]
    four.quantised(base.cls, base.config, torch.float32, dict(bnb_4bit_quant_type="nf4"), tmp_path)
    how = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = base.cls.from_pretrained(tmp_path / "plain", quantization_config=how, dtype=torch.float32)
    made = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False))
    made.save_pretrained(tmp_path / "adapter")
    with four.as_float64():
        plain = base.cls.from_pretrained(tmp_path / "twin", dtype=torch.float64, attn_implementation="eager").eval()
        adapted = (
            peft.PeftModel.from_pretrained(plain, tmp_path / "adapter", autocast_adapter_dtype=False).double().eval()
        )
        given = four.bases.inputs(base.cls, base.config, "none", torch.Generator().manual_seed(1))
        with torch.no_grad():
            want = adapted(**given).logits.numpy()
    for place, dtype in (("plain", "nf4"), ("four", None)):
        found = load_peft(load(tmp_path / place, dtype).astype(np.float64), tmp_path / "adapter")
        logits = found.forward(batch(**{k: v.numpy() for k, v in given.items()})).logits
        np.testing.assert_allclose(logits, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama-cls", "gpt2"])
def test_a_classifier_finds_padding_without_a_mask(name, four, tmp_path):
    import torch
    import transformers

    config = four.bases.bases()[name].config
    kind = transformers.GPT2ForSequenceClassification if name == "gpt2" else transformers.LlamaForSequenceClassification
    config.num_labels = 4
    torch.manual_seed(0)
    made = kind(config)
    four.jitter(made, torch.Generator().manual_seed(0))
    made.save_pretrained(tmp_path)
    ids = np.array([[5, 9, 3, 0, 0], [0, 0, 4, 8, 9], [3, 0, 0, 7, 0], [0, 0, 0, 0, 0]])
    with four.as_float64(), torch.no_grad():
        model = kind.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager").eval()
        want = model(torch.tensor(ids)).logits.numpy()
    from minipeft.adapted import Adapted

    np.testing.assert_allclose(
        Adapted(load(tmp_path, np.float64)).forward(batch(input_ids=ids)).logits, want, rtol=0, atol=1e-12
    )
