"""MiSS and MiSS-BAT."""

import peft
from peft.tuners.miss import layer

DOWNCASTING = (layer,)


def cases(on):
    def miss(base, name, r, *targets, padding="none", **options):
        return base(name, peft.MissConfig, padding, r=r, target_modules=[*targets], **options)

    bat, mini = dict(init_weights="bat"), dict(init_weights="mini")
    return [
        miss(on.llama, "miss", 5, "q_proj", "v_proj", "down_proj", padding="left"),
        miss(on.llama, "miss-mini", 4, "q_proj", "v_proj", mini_r=3, **mini),
        miss(on.llama, "miss-bat", 4, "k_proj", "up_proj", **bat),
        miss(on.bert_cls, "miss", 3, "query", "value", padding="right"),
        miss(on.bert_cls, "miss-bat", 5, "query", "value", padding="right", **bat),
        miss(on.t5, "miss", 3, "q", "wi", padding="right"),
        miss(on.t5, "miss-bat", 2, "q", "wi", padding="right", **bat),
        miss(on.vit, "miss-mini", 5, "q_proj", "v_proj", mini_r=3, **mini),
        miss(on.vit, "miss-bat", 3, "q_proj", "v_proj", **bat),
    ]
