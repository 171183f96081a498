"""Cartridges."""

import peft


def cases(on):
    cls = peft.CartridgeConfig
    return [
        on.llama("cartridge", cls, "left", num_virtual_tokens=4, num_frozen_tokens=2),
        on.llama("cartridge-unfrozen", cls, num_virtual_tokens=3, num_frozen_tokens=0),
        on.llama_cls("cartridge", cls, num_virtual_tokens=3),
        on.gpt2("cartridge-gpt2", cls, num_virtual_tokens=3),
        on.llama_cls("cartridge-frozen", cls, num_virtual_tokens=2, num_frozen_tokens=2),
        on.bert_cls("cartridge-bert", cls, num_virtual_tokens=3),
        on.t5("cartridge-t5", cls, num_virtual_tokens=3),
    ]
