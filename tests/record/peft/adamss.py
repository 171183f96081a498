"""AdaMSS. Its float32 is that of the clusters, which are the same in float64."""

import peft

DOWNCASTING = ()


def cases(on):
    adamss, qv = peft.AdamssConfig, ["q_proj", "v_proj"]
    return [
        on.llama("adamss", adamss, "left", r=6, num_subspaces=3, subspace_rank=2, target_modules=qv),
        on.llama("adamss-dynamic", adamss, r=9, num_subspaces=4, subspace_rank=3, use_dynamic_rank=True, svd_threshold=0.3,
                 random_seed=5, target_modules=["o_proj", "down_proj"]),
        on.llama("adamss-each", adamss, r=30, num_subspaces=14, subspace_rank=2, target_modules=["k_proj", "v_proj"]),  # of 12 outputs
        on.bert_cls("adamss-bert", adamss, r=4, subspace_rank=2, target_modules=["query", "output.dense"]),
        on.t5("adamss-t5", adamss, r=5, num_subspaces=2, target_modules=["q", "wi"]),  # without biases
        on.vit("adamss-vit", adamss, r=7, num_subspaces=4, target_modules=["q_proj", "v_proj"]),
    ]  # fmt: skip
