"""MPT."""

import peft


def cases(on):
    cls, sizes = peft.MultitaskPromptTuningConfig, dict(num_virtual_tokens=3, num_tasks=3)
    return [
        on.llama("mpt", cls, "left", num_ranks=2, **sizes),
        on.llama("mpt-one-rank", cls, **sizes),
        on.gpt2("mpt-gpt2", cls, **sizes),
        on.bert_cls("mpt-bert", cls, num_ranks=2, **sizes),
        on.t5("mpt-t5", cls, num_ranks=2, **sizes),
        on.t5("mpt-t5-encoder", cls, num_transformer_submodules=1, **sizes),
    ]
