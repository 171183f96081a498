"""PiSSA by a randomised decomposition, which no file tells: as PEFT converts it."""

import peft


def cases(on):
    def fast(base, name, rounds, **options):
        start = f"pissa_niter_{rounds}"
        return base(
            name, peft.LoraConfig, case=dict(converted=True), r=3, lora_alpha=5, init_lora_weights=start, **options
        )

    return [
        fast(on.llama, "pissa-niter-converted", 1, target_modules=["q_proj", "up_proj"], alpha_pattern={"up_proj": 7}),
        fast(on.gpt2, "pissa-niter-converted", 4, target_modules=["c_attn"], fan_in_fan_out=True, use_rslora=True),
    ]
