"""P-tuning on GPT-2; other files have the cases on BERT, T5 and a Llama that classifies."""

import peft


def cases(on):
    return [
        on.gpt2("p-tuning", peft.PromptEncoderConfig, "left", num_virtual_tokens=3, encoder_reparameterization_type="LSTM",
                encoder_hidden_size=6, encoder_num_layers=2, encoder_dropout=0.3),
    ]  # fmt: skip
