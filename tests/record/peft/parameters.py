"""LoRA on parameters by their own names: of linears, of tables, and of weights that are stored the other way round."""

import peft


def cases(on):
    def lora(base, *parameters, **options):
        fields = dict(r=3, lora_alpha=5, target_modules=[]) | options
        return base("lora-parameters", peft.LoraConfig, target_parameters=list(parameters), **fields)

    patterns = dict(
        rank_pattern={"gate_proj": 7, "embed_tokens.weight": 2},
        alpha_pattern={"q_proj": 7, "0.mlp.gate_proj.weight": 4},
    )
    beside = dict(
        target_modules=["q_proj"], layers_to_transform=[1], exclude_modules=["gate_proj"], modules_to_save=["norm"]
    )
    return [
        lora(on.llama, "mlp.gate_proj.weight", "embed_tokens.weight", "lm_head.weight", **patterns, **beside),
        lora(on.gpt2, "c_attn.weight", "h.1.mlp.c_fc.weight", "wte.weight", use_rslora=True, target_modules=["wpe"]),
        lora(on.bert_cls, "query.weight", "word_embeddings.weight", bias="lora_only"),
        lora(on.t5, "wo.weight", "relative_attention_bias.weight", init_lora_weights="gaussian"),
    ]
