"""FourierFT, beyond the cases on Llama."""

import peft


def cases(on):
    fourier = peft.FourierFTConfig
    return [
        on.gpt2("fourierft", fourier, n_frequency=9, scaling=60.0, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True),
        on.bert_cls("fourierft", fourier, n_frequency=9, scaling=60.0, target_modules=["query", "output.dense"], bias="fourierft_only"),
        on.t5("fourierft", fourier, n_frequency=9, scaling=40.0, target_modules=["q", "wo"], init_weights=True,
              n_frequency_pattern={r"1\.layer\.0\.SelfAttention\.q": 5}),
        on.vit("fourierft", fourier, n_frequency=9, scaling=40.0, target_modules=["q_proj", "fc1"]),
        on.mistral("fourierft", fourier, scaling=40.0, target_modules=["q_proj", "v_proj"],  # of 1000, which fit nowhere
                   n_frequency_pattern={"q_proj": 12, "v_proj": 7}, random_loc_seed=3),
    ]  # fmt: skip
