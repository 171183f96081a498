"""Convolutions as targets: ViT's patches, of every tuner that has layers for them. OFT has, and computes no matrix over patches there."""

import peft
import torch
from peft.tuners.loha import layer


def tucker(t1, w1a, w1b, t2, w2a, w2b, scale):
    """As PEFT computes it, but for its gradients of w1a and w2a, which are wrong."""
    one, other = (torch.einsum("ijkl,jr,ip->prkl", t, b, a) for t, a, b in ((t1, w1a, w1b), (t2, w2a, w2b)))
    return one * other * scale


layer.make_weight_cp = tucker


def cases(on):
    def patches(cls, name, *targets, base=on.vit_channels, **options):
        return base(f"{name}-patches", cls, target_modules=["projection", *targets], **options)

    ada = dict(init_r=4, target_r=2, total_step=9, lora_alpha=5)
    loha, lokr = dict(r=3, alpha=5, init_weights=False), dict(r=1, alpha=5, init_weights="lycoris")
    return [
        patches(peft.LoraConfig, "lora", "q_proj", r=3, lora_alpha=5, lora_bias=True, rank_pattern={"projection": 2}),
        patches(peft.LoraConfig, "lora", base=on.vit, r=4, lora_alpha=6, use_rslora=True, init_lora_weights="gaussian", bias="lora_only"),
        patches(peft.LoraConfig, "dora", "v_proj", r=3, lora_alpha=5, use_dora=True),
        patches(peft.AdaLoraConfig, "adalora", "fc1", **ada),
        patches(peft.IA3Config, "ia3", "k_proj", "fc2", feedforward_modules=["fc2"]),
        patches(peft.IA3Config, "ia3-channels", "fc1", feedforward_modules=["projection"]),
        patches(peft.HiraConfig, "hira", "q_proj", r=3),
        patches(peft.HRAConfig, "hra", "q_proj", r=4),
        patches(peft.BOFTConfig, "boft", boft_block_size=9),
        patches(peft.BOFTConfig, "boft", base=on.vit, boft_block_size=4, boft_n_butterfly_factor=3),
        patches(peft.LoHaConfig, "loha", "fc1", **loha),
        patches(peft.LoHaConfig, "loha-tucker", "fc1", use_effective_conv2d=True, **loha),
        patches(peft.LoKrConfig, "lokr", "fc1", **lokr),
        patches(peft.LoKrConfig, "lokr-both", decompose_both=True, **lokr),
        patches(peft.LoKrConfig, "lokr-tucker", "fc1", use_effective_conv2d=True, decompose_factor=3, **lokr),
        patches(peft.LoKrConfig, "lokr-whole", r=7, alpha=5, use_effective_conv2d=True),
        on.gpt2("dora-tables", peft.LoraConfig, r=3, lora_alpha=5, use_dora=True, target_modules=["wte", "wpe"]),
        on.bert_cls("dora-tables", peft.LoraConfig, r=3, lora_alpha=5, use_dora=True, target_modules=["word_embeddings", "token_type_embeddings"]),
    ]  # fmt: skip
