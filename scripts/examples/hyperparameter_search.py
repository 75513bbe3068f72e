# SPDX-License-Identifier: Apache-2.0
"""Search the radius with the Trainer's own hyperparameter search. What differs has `# SAM`.

python scripts/examples/hyperparameter_search.py      # pip install optuna
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification

from hf_sam import SAMTrainer, SAMTrainingArguments  # SAM

digits = load_digits()
pixels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, digits.target, strict=True)]
train, held_out, test = data[:1150], data[1150:1437], data[1437:]  # a radius is chosen on held-out *training* data


def make_model(trial: Any = None) -> ResNetForImageClassification:
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, num_labels=10, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic"
        )
    )  # fmt: skip


def space(trial: Any) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 3e-3, 3e-2, log=True),
        "rho": trial.suggest_float("rho", 0.005, 0.5, log=True),  # SAM: a factor of a hundred is not too wide
    }


args = SAMTrainingArguments(  # SAM: TrainingArguments with SAM's fields among them, which is what a search can set
    "outputs/examples/hyperparameter_search", num_train_epochs=2, per_device_train_batch_size=64, logging_strategy="no",
    save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True,
)  # fmt: skip
trainer = SAMTrainer(  # SAM: Trainer(
    args=args,
    model_init=make_model,
    train_dataset=train,
    eval_dataset=held_out,
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
)
best = trainer.hyperparameter_search(
    space, n_trials=3, direction="maximize", compute_objective=lambda metrics: metrics["eval_accuracy"]
)
print(f"best on held-out data: {best.hyperparameters} with {100 * best.objective:.1f} %")

for name, value in best.hyperparameters.items():
    setattr(trainer.args, name, value)
trainer.train()
print(f"test accuracy: {100 * trainer.evaluate(test)['eval_accuracy']:.1f} %")
