# SPDX-License-Identifier: Apache-2.0
"""Fine-tune with SAM where the Trainer was. What differs has `# SAM`.

python scripts/examples/trainer.py
"""

import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer  # SAM: in place of `from transformers import Trainer`

digits = load_digits()  # 1,797 images of 8 x 8 pixels
pixels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, digits.target, strict=True)]
train, test = data[:1437], data[1437:]

set_seed(0)
model = ResNetForImageClassification(
    ResNetConfig(
        num_channels=1, num_labels=10, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic"
    )
)  # fmt: skip
args = TrainingArguments(
    "outputs/examples/trainer", num_train_epochs=4, per_device_train_batch_size=64, learning_rate=1e-2,
    logging_steps=23, save_strategy="no", use_cpu=True, report_to="none",
)  # fmt: skip
trainer = SAMTrainer(  # SAM: Trainer(
    model,
    args,
    train_dataset=train,
    eval_dataset=test,
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    sam_config=SAMConfig(rho=0.05),  # SAM: how far to the worst nearby point; or rho="auto"
)
trainer.train()
print(f"test accuracy: {100 * trainer.evaluate()['eval_accuracy']:.1f} %")
