"""C3A."""

import peft
from peft.tuners.c3a import layer

DOWNCASTING = (layer,)


def cases(on):
    # in blocks of 2: PEFT's gradient with respect to the input is wrong from 3 on
    return [on.llama("c3a", peft.C3AConfig, "left", block_size=2, target_modules=["q_proj", "v_proj"])]
