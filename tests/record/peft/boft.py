"""BOFT. Its extension for CUDA, without which it has one factor, puts blocks onto a diagonal and nothing else."""

import peft
import torch
from peft.tuners.boft import layer

DOWNCASTING = (layer,)


class OnTheDiagonal:
    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*factor) for factor in blocks])


layer.get_fbd_cuda, layer.FastBlockDiag = (lambda: True), OnTheDiagonal


def cases(on):
    def boft(base, name, *targets, padding="none", **options):
        return base(name, peft.BOFTConfig, padding, target_modules=[*targets], **options)

    return [
        boft(on.llama, "boft", "q_proj", "v_proj", "down_proj", padding="left", boft_block_size=4),
        boft(on.llama, "boft-blocks", "k_proj", "up_proj", boft_block_size=0, boft_block_num=3),
        boft(on.llama, "boft-two", "q_proj", "v_proj", boft_block_size=4, boft_n_butterfly_factor=2),
        boft(on.llama, "boft-three", "q_proj", "v_proj", boft_block_size=2, boft_n_butterfly_factor=3),
        boft(on.bert_cls, "boft", "query", "value", padding="right", boft_block_size=2, boft_n_butterfly_factor=2),
        boft(on.t5, "boft", "q", "wi", padding="right", boft_block_size=4, boft_n_butterfly_factor=3),
        boft(on.vit, "boft", "q_proj", "v_proj", boft_block_size=3),
    ]
