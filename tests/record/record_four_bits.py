"""Records bases that transformers held in four bits with bitsandbytes: `python tests/record/record_four_bits.py`.

Writes tests/data/four_bits/<name>/: the checkpoint as transformers saves it, and expected.safetensors with one batch and what the
model computes in float64 with the numbers that the codes stand for. Running it again gives the same bytes.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import record_bases as bases
import torch
import transformers as tf
from float64 import as_float64, expect, jitter
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1] / "data" / "four_bits"
CASES = {  # name -> the base, the type of the rest, and settings of bitsandbytes
    "llama-double": ("llama", torch.bfloat16, dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)),
    "gpt2-nf4": ("gpt2", torch.float32, dict(bnb_4bit_quant_type="nf4")),
    "bert-fp4": ("bert-cls", torch.float16, dict(bnb_4bit_quant_type="fp4")),
}


def sized(config: Any) -> Any:
    """The configuration with widths that bitsandbytes 0.50 reads back right on a CPU, where 16 and 32 columns come out wrong."""
    known = config.to_dict()
    return type(config).from_dict(known | ({"d_model": 20} if "d_model" in known else {}))


def quantised(cls: Any, config: Any, dtype: torch.dtype, options: dict[str, Any], folder: Path) -> None:
    """In `folder`: `plain`, a random model; `four`, the same in four bits; `twin`, the numbers that it stands for."""
    torch.manual_seed(0)
    made = cls(config)
    jitter(made, torch.Generator().manual_seed(0))
    made.to(dtype).save_pretrained(folder / "plain")
    how = tf.BitsAndBytesConfig(load_in_4bit=True, **options)
    model = cls.from_pretrained(folder / "plain", quantization_config=how, dtype=dtype)
    model.save_pretrained(folder / "four")
    model.dequantize(torch.float32).float().save_pretrained(folder / "twin")
    if config.model_type == "gpt2":  # bitsandbytes turns its matrices round, which stay so in linears
        turn = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
        bases.edited(folder / "twin", lambda tensors: {k: v.T if turn.search(k) else v for k, v in tensors.items()})
    for place in folder.glob("*/generation_config.json"):
        place.unlink()


def computed(cls: Any, folder: Path, seed: int) -> bases.Tensors:
    """One batch and what a plain checkpoint computes in float64."""
    with as_float64():
        model = cls.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
        model.config.use_cache = False
        given = bases.inputs(cls, model.config, "none", torch.Generator().manual_seed(seed))
        return given | expect(model, given)


def main() -> None:
    shutil.rmtree(ROOT, ignore_errors=True)
    for name, (base, dtype, options) in CASES.items():
        found = bases.bases()[base]
        with tempfile.TemporaryDirectory() as temporary:
            quantised(found.cls, sized(found.config), dtype, options, Path(temporary))
            shutil.copytree(Path(temporary) / "four", ROOT / name)
            save_file(computed(found.cls, Path(temporary) / "twin", 1), ROOT / name / "expected.safetensors")


if __name__ == "__main__":
    main()
