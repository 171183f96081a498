"""LoRA's starts that are drawn: their files say which, and hold the factors as they became; and layers that are repeated."""

import peft


def cases(on):
    def lora(base, name, **options):
        return base(name, peft.LoraConfig, **dict(r=4, lora_alpha=6) | options)

    fused = dict(target_modules=["c_attn"], fan_in_fan_out=True)
    again = dict(layer_replication=[[0, 2], [0, 1], [1, 2]])  # 0, 1, 0, 1
    first = dict(layer_replication=[[1, 2], [0, 2]])  # 1, 0, 1
    patterns = dict(rank_pattern={r"layers\.2\.self_attn\.q_proj": 2}, alpha_pattern={"3.mlp.down_proj": 7})
    return [
        lora(on.llama, "lora-replicated", target_modules=["q_proj", "down_proj"], **again, **patterns),
        lora(on.llama, "lora-fewer-layers", target_modules=["q_proj", "lm_head"], layer_replication=[[1, 2]]),
        lora(
            on.llama, "dora-replicated", use_dora=True, target_modules=["v_proj"], layers_to_transform=[0, 2], **first
        ),
        lora(on.llama_cls, "lora-replicated", target_modules="all-linear", modules_to_save=["norm"], **first),
        lora(on.mistral, "lora-replicated", target_modules=["k_proj", "up_proj"], **first),
        lora(on.bert_cls, "lora-replicated", target_modules=["value", "output.dense"], **again),
        lora(on.llama, "lora-gaussian", init_lora_weights="gaussian", target_modules=["q_proj", "embed_tokens"]),
        lora(on.llama, "lora-orthogonal", init_lora_weights="orthogonal", target_modules=["k_proj", "down_proj"]),
        lora(on.gpt2, "lora-orthogonal", init_lora_weights="orthogonal", **fused),
    ]
