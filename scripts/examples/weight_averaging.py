# SPDX-License-Identifier: Apache-2.0
"""Average the weights of the last half of a run, beside SAM or without it. What differs has `# SAM`.

python scripts/examples/weight_averaging.py
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer, WeightAveraging

METHODS = {"AdamW": SAMConfig(sam_variant="none"), "SAM": SAMConfig(rho=0.1)}  # SAM: "none" is the plain Trainer
digits = load_digits()
pixels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
labels = torch.tensor(digits.target)
wrong = torch.rand(1437, generator=torch.Generator().manual_seed(0)) < 0.3  # of the labels to train on, 30 % are wrong
given = torch.where(wrong, (labels[:1437] + 3) % 10, labels[:1437])
train = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, given, strict=False)]
test = [{"pixel_values": i, "labels": int(label)} for i, label in zip(pixels[1437:], labels[1437:], strict=True)]


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def accuracies(sam: SAMConfig) -> list[float]:
    """Return the test accuracy with the weights of the last step, and with their mean over the last half."""
    set_seed(0)
    model = ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, num_labels=10, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic"
        )
    )  # fmt: skip
    args = TrainingArguments(
        "outputs/examples/weight_averaging", num_train_epochs=6, per_device_train_batch_size=64, learning_rate=1e-2,
        lr_scheduler_type="constant", eval_strategy="epoch", logging_strategy="no", save_strategy="no", use_cpu=True,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    callback = WeightAveraging(start=0.5)  # decay=0.99 as well: an exponential moving average
    settings = {"train_dataset": train, "eval_dataset": test, "callbacks": [callback], "compute_metrics": accuracy}
    trainer = SAMTrainer(model, args, **settings, sam_config=sam)  # SAM: Trainer(...)
    trainer.train()  # evaluates the weights of each epoch; at its end the mean is in the model
    evaluated = [log["eval_accuracy"] for log in trainer.state.log_history if "eval_accuracy" in log]
    return [evaluated[-1], trainer.evaluate()["eval_accuracy"]]


for name, sam in METHODS.items():
    last, mean = accuracies(sam)
    print(f"{name}: test accuracy {100 * last:.1f} % with the last weights, {100 * mean:.1f} % with their mean")
