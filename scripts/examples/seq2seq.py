# SPDX-License-Identifier: Apache-2.0
"""Train an encoder-decoder with SAM: `SAMSeq2SeqTrainer` where `Seq2SeqTrainer` was. What differs has `# SAM`.

python scripts/examples/seq2seq.py
"""

import torch
from transformers import T5Config, T5ForConditionalGeneration, set_seed

from hf_sam import SAMSeq2SeqTrainer, SAMSeq2SeqTrainingArguments  # SAM: transformers' names without it

PAD, END, FIRST, ANIMALS, OTHERS = 0, 1, 2, 8, 20  # the task: name the animal of a sentence in another language


def sentence() -> dict[str, list[int]]:
    words = torch.randint(OTHERS, (5,)) + FIRST + 2 * ANIMALS
    animal = int(torch.randint(ANIMALS, ())) + FIRST
    words[torch.randint(5, ())] = animal
    return {"input_ids": [*words.tolist(), END], "labels": [animal + ANIMALS, END]}


set_seed(0)
train, test = [sentence() for _ in range(640)], [sentence() for _ in range(64)]
model = T5ForConditionalGeneration(
    T5Config(
        vocab_size=FIRST + 2 * ANIMALS + OTHERS, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END,
    )
)  # fmt: skip
args = SAMSeq2SeqTrainingArguments(
    "outputs/examples/seq2seq", num_train_epochs=4, per_device_train_batch_size=32, learning_rate=1e-2,
    predict_with_generate=True, generation_max_length=4, logging_steps=20, save_strategy="no", use_cpu=True,
    report_to="none",
    rho=0.05,  # SAM: its settings are among the training arguments here, so that a command line can give them
)  # fmt: skip
collator = lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}  # noqa: E731
trainer = SAMSeq2SeqTrainer(model, args, train_dataset=train, data_collator=collator)  # SAM
trainer.train()
named = trainer.predict(test).predictions[:, 1]  # after the token that a decoder begins with
right = [word == wanted["labels"][0] for word, wanted in zip(named.tolist(), test, strict=True)]
print(f"animals named rightly: {100 * sum(right) / len(right):.0f} %")
