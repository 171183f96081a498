"""PSOFT, whose space PEFT finds in the base in float32: here in float64, each pair of vectors with the sign that it has in float32."""

import peft
import torch
from peft.tuners.psoft import layer

DOWNCASTING = (layer,)
SHIPPED = layer.PsoftLayer._compute_svd_factors


def _with_signs(self, weight, r, **options):
    Vt, drawn = SHIPPED(self, weight.to(torch.float32), r, **options)[2], torch.randn
    torch.randn = lambda *shape, dtype, device: drawn(*shape, dtype=torch.float32).to(dtype)  # the same directions
    try:
        U, S, wide = SHIPPED(self, weight, r, **options)
    finally:
        torch.randn = drawn
    sign = torch.sign((wide * Vt).sum(1))
    return U * sign, S, wide * sign[:, None]


layer.PsoftLayer._compute_svd_factors = _with_signs


def cases(on):
    qv, neumann = ["q_proj", "v_proj"], dict(use_cayley_neumann=True)
    return [
        on.llama("psoft", peft.PsoftConfig, "left", r=4, target_modules=qv),
        on.llama("psoft-neumann", peft.PsoftConfig, r=5, target_modules=["k_proj", "down_proj"], num_cayley_neumann_terms=7, **neumann),
        on.llama("psoft-eps", peft.PsoftConfig, r=4, target_modules=qv, cayley_neumann_eps=0.4, num_cayley_neumann_terms=2,
                 psoft_mag_a=False, **neumann),
        on.llama("psoft-free", peft.PsoftConfig, r=4, target_modules=qv, psoft_orth=False, psoft_mag_b=False, ab_svd_init="pissa_init"),
        on.llama("psoft-lowrank", peft.PsoftConfig, r=4, target_modules=["q_proj", "down_proj"], psoft_svd="lowrank"),
        on.t5("psoft-lowrank", peft.PsoftConfig, r=3, target_modules=["k", "wi"], psoft_svd="lowrank", psoft_svd_lowrank_niter=1,
              random_seed=11, ab_svd_init="pissa_init"),
        on.bert_cls("psoft-bert-cls", peft.PsoftConfig, r=3, target_modules=["query", "output.dense"]),
        on.t5("psoft-t5", peft.PsoftConfig, r=3, target_modules=["q", "wo"]),
        on.vit("psoft-vit", peft.PsoftConfig, r=3, target_modules=["q_proj", "fc2"]),
    ]  # fmt: skip
