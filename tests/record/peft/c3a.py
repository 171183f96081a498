"""C3A, in blocks of its own for each module. PEFT's gradient of a module's input is wrong from blocks of 3 on (deviations.md): there

no module of a case stands behind another.
"""

import peft
from peft.tuners.c3a import layer

DOWNCASTING = (layer,)


def cases(on):
    c3a, last = peft.C3AConfig, dict(layers_to_transform=[1])
    return [
        on.llama("c3a", c3a, "left", block_size=2, target_modules=["q_proj", "v_proj"]),
        on.llama("c3a-blocks", c3a, block_size=6, block_size_pattern={"v_proj": 4, "k_proj": 12},
                 target_modules=["q_proj", "k_proj", "v_proj"], **last),
        on.mistral("c3a", c3a, block_size=9, target_modules=["v_proj"], **last),
        on.bert_cls("c3a", c3a, block_size=5, block_size_pattern={"query": 10}, target_modules=["query", "value"], **last),
        on.t5("c3a", c3a, block_size=8, target_modules=r"decoder\.block\.1\..*SelfAttention\.(q|v)", block_size_pattern={"v": 4}),
        on.vit("c3a", c3a, block_size=11, target_modules=["q_proj", "k_proj"], **last),
    ]  # fmt: skip
