"""Where mistakes were seen: the addresses of reports that mutants name as `mlx-vlm #841, #845; PEFT #2486`."""

from __future__ import annotations

import re

PROJECTS = {
    "InvokeAI": "invoke-ai/InvokeAI",
    "LyCORIS": "KohakuBlueleaf/LyCORIS",
    "PEFT": "huggingface/peft",
    "TensorRT-LLM": "NVIDIA/TensorRT-LLM",
    "aprender": "paiml/aprender",
    "bitsandbytes": "bitsandbytes-foundation/bitsandbytes",
    "candle-lora": "EricLBuehler/candle-lora",
    "mlx-examples": "ml-explore/mlx-examples",
    "mlx-vlm": "Blaizzy/mlx-vlm",
    "sglang": "sgl-project/sglang",
    "torchtune": "meta-pytorch/torchtune",
    "transformers": "huggingface/transformers",
    "unsloth-zoo": "unslothai/unsloth-zoo",
    "vLLM": "vllm-project/vllm",
}


def addresses(incidents: str) -> list[str]:
    """The addresses of what is named with a number, of the projects above or as owner/name.

    >>> addresses("mlx-vlm #841; rasbt/LLMs-from-scratch #821; Keras lora_alpha in the constructor")
    ['https://github.com/Blaizzy/mlx-vlm/issues/841', 'https://github.com/rasbt/LLMs-from-scratch/issues/821']
    """
    out = []
    for name, numbers in re.findall(r"([\w./-]+) (#\d+(?:, #\d+)*)", incidents):
        project = name if "/" in name else PROJECTS.get(name)
        out += [f"https://github.com/{project}/issues/{n}" for n in re.findall(r"\d+", numbers) if project]
    return out
