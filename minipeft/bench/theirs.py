"""The other side: the same in torch with PEFT and transformers, as their users write it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from minipeft.bench.cases import NEW, PROMPT, SETTINGS, filled, settings
from minipeft.bench.machine import on_gpu


def their_model(size: str) -> Any:
    """A random model of the same shape in transformers, without dropout."""
    import transformers

    s = settings(size)
    if size.startswith("GPT2"):
        none = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**none))
    config = transformers.LlamaConfig(
        hidden_size=s["d"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"], intermediate_size=4 * s["d"],
        vocab_size=s["vocab"], tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def with_bottlenecks(model: Any) -> Any:
    """The Llama-shaped torch model with a bottleneck after every sub-layer, everything else frozen."""
    import torch

    class Bottleneck(torch.nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            d = base.out_features
            self.base, self.down, self.up = base, torch.nn.Linear(d, d // 16), torch.nn.Linear(d // 16, d)

        def forward(self, x: Any) -> Any:
            a = self.base(x)
            return a + self.up(torch.nn.functional.silu(self.down(a.to(self.down.weight.dtype)))).to(a.dtype)

    for p in model.parameters():
        p.requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.o_proj = Bottleneck(layer.self_attn.o_proj)
        layer.mlp.down_proj = Bottleneck(layer.mlp.down_proj)
    return model


STAND_INS = {"bottlenecks": with_bottlenecks}


def adapted(model: Any, method: str, size: str) -> Any:
    """The torch model with a method of `methods.json`: PEFT's, or a module that stands in for it."""
    import peft

    theirs = SETTINGS[method]
    if "torch" in theirs:
        return STAND_INS[theirs["torch"]](model)
    ((config, given),) = theirs["peft"].items()
    return peft.get_peft_model(model, getattr(peft, config)(**filled(given, size)))


def peft_step(
    size: str, method: str, task: str = "step", compiled: bool = False, dtype: str = "float32"
) -> Callable[[], float]:
    """The same in torch + PEFT, or transformers, as their users write it; `compiled` by torch.compile."""
    import torch

    s = settings(size)
    place = "cuda" if on_gpu() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(os.environ.get("MINIPEFT_TF32"))
    model = their_model(size).to(place, getattr(torch, dtype))
    ids = torch.randint(0, s["vocab"], (s["b"], s["t"])).to(place)
    if task == "generate":
        model.eval().generation_config.eos_token_id = None
        prompt = ids[:1, :PROMPT]
        asked: dict[str, Any] = dict(max_new_tokens=NEW, do_sample=False, use_cache=True, pad_token_id=0)
        if compiled:  # with a cache of one shape, or every token would be compiled anew
            model.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
            asked["cache_implementation"] = "static"
        return lambda: float(model.generate(prompt, attention_mask=torch.ones_like(prompt), **asked)[0, -1])
    if task == "forward":
        model = torch.compile(model.eval()) if compiled else model.eval()

        def forward() -> float:
            with torch.no_grad():
                return model(input_ids=ids, labels=ids).loss.item()

        return forward
    model = adapted(model, method, size)
    model.to(place).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model = torch.compile(model) if compiled else model

    def step() -> float:
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        return loss.item()

    return step
