"""ensure_weight_tying: the token table and the head that is tied to it have one change, be it LoRA's or a copy that is trained whole."""

import peft


def cases(on):
    def tied(base, name, cls=peft.LoraConfig, **fields):
        sizes = dict(r=3, lora_alpha=5) if cls is peft.LoraConfig else dict(init_r=4, target_r=2, total_step=9)
        return base(name, cls, ensure_weight_tying=True, **sizes | fields)

    fused, qv, whole = dict(fan_in_fan_out=True), ["q_proj", "v_proj"], dict(modules_to_save=["embed_tokens"])
    patterns = dict(rank_pattern={"embed_tokens|lm_head": 2}, alpha_pattern={"embed_tokens": 7, "lm_head": 7})
    return [
        tied(on.llama_tied, "lora-tied", target_modules=["embed_tokens", "q_proj"], **patterns),
        tied(on.llama_tied, "lora-tied-head", target_modules=r"(.*up_proj|lm_head)", use_rslora=True),
        tied(on.llama_tied, "lora-tied-whole", target_modules=qv, modules_to_save=["lm_head"]),
        tied(on.llama_tied, "lora-tied-tokens", target_modules=qv, trainable_token_indices=[3, 7]),
        tied(on.llama_tied, "adalora-tied-whole", peft.AdaLoraConfig, target_modules=qv, **whole),
        tied(on.gpt2, "lora-tied", target_modules=r"transformer\.wte|lm_head|.*c_attn", **fused),
    ]
