"""OFT, beyond the cases on Llama. It knows linears and tables, but not the linears of GPT-2."""

import peft


def cases(on):
    exact = dict(use_cayley_neumann=False)
    oft = peft.OFTConfig
    return [
        on.llama("oft-mixed", oft, oft_block_size=5, block_share=True, coft=True, eps=1.2, bias="oft_only", module_dropout=0.5,
                 target_modules=["q_proj", "embed_tokens"], **exact, case=dict(size=0.15)),
        on.bert_cls("oft", oft, oft_block_size=5, target_modules=["query", "output.dense"], bias="oft_only", **exact),
        on.t5("oft", oft, oft_block_size=0, r=2, target_modules=["q", "wo"], case=dict(size=0.1)),
        on.vit("oft", oft, oft_block_size=4, target_modules=["q_proj", "fc2"], **exact),
    ]  # fmt: skip
