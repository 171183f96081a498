"""Poly and MHR, beyond the cases on Llama. PEFT knows linears alone, not those of GPT-2, and a ViT would be given the tasks too."""

import peft


def cases(on):
    poly = peft.PolyConfig
    return [
        on.bert_cls("poly", poly, r=2, n_tasks=3, n_skills=2, n_splits=4, target_modules=["query", "output.dense"]),
        on.t5("poly", poly, r=2, n_tasks=3, n_skills=3, n_splits=2, target_modules=["q", "wo"]),
        on.mistral("poly", poly, "left", r=4, n_tasks=3, n_skills=1, n_splits=1, target_modules=["k_proj", "o_proj"]),
        on.llama_cls(
            "poly", poly, r=4, n_tasks=3, n_skills=4, n_splits=4, poly_type="poly", target_modules=["q_proj", "up_proj"]
        ),
    ]
