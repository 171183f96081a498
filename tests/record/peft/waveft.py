"""WaveFT, with filters whose tables in PEFT are exact, and one whose is not."""

import peft


def cases(on):
    qv = dict(target_modules=["q_proj", "v_proj"])
    own = dict(n_frequency_pattern={"down_proj": 7, "0.self_attn.q_proj": 30})
    return [
        on.llama("waveft", peft.WaveFTConfig, "left", n_frequency=40, scaling=3.0, **qv),
        on.llama("waveft-db4", peft.WaveFTConfig, n_frequency=40, scaling=3.0, wavelet_family="db4", random_loc_seed=5, **qv),
        on.llama("waveft-coif2", peft.WaveFTConfig, n_frequency=19, scaling=3.0, wavelet_family="coif2",
                 target_modules=["q_proj", "down_proj"], **own),
        on.llama("waveft-sparse", peft.WaveFTConfig, n_frequency=19, scaling=2.0, use_idwt=False, **qv),
        on.llama("waveft-proportional", peft.WaveFTConfig, n_frequency=19, scaling=3.0, wavelet_family="db2",
                 proportional_parameters=True, target_modules=["q_proj", "k_proj", "up_proj"]),
        on.gpt2("waveft-gpt2", peft.WaveFTConfig, n_frequency=40, scaling=3.0, wavelet_family="db2", fan_in_fan_out=True,
                target_modules=["c_attn"]),
        on.bert_cls("waveft-bert", peft.WaveFTConfig, n_frequency=40, scaling=3.0, wavelet_family="coif1",
                    target_modules=["query", "value"]),
        on.t5("waveft-t5", peft.WaveFTConfig, n_frequency=40, scaling=3.0, wavelet_family="db5", target_modules=["q", "wo"]),
        on.bert_cls("waveft-sym6", peft.WaveFTConfig, n_frequency=40, scaling=3.0, wavelet_family="sym6", target_modules=["query"]),
        on.vit("waveft-vit", peft.WaveFTConfig, n_frequency=40, scaling=3.0, target_modules=["q_proj", "fc2"]),
    ]  # fmt: skip
