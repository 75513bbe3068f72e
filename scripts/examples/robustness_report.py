# SPDX-License-Identifier: Apache-2.0
"""Report what is left of a model after rounding, pruning and noise, with AdamW and with SAM. What differs has `# SAM`.

python scripts/examples/robustness_report.py      # pip install "hf-sam[robustness]"
"""

import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification, TrainingArguments, ViTImageProcessor, set_seed

from hf_sam import SAMConfig, SAMTrainer, robustness

METHODS = {"AdamW": SAMConfig(sam_variant="none"), "SAM": SAMConfig(rho=0.1)}  # SAM: "none" is the plain Trainer
digits = load_digits()
pixels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, digits.target, strict=True)]
train, held_out, test = data[:1250], data[1250:1437], data[1437:]


def trained(sam: SAMConfig) -> ResNetForImageClassification:
    set_seed(0)
    model = ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, num_labels=10, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic"
        )
    )  # fmt: skip
    args = TrainingArguments(
        "outputs/examples/robustness_report", num_train_epochs=4, per_device_train_batch_size=64, learning_rate=1e-2,
        logging_strategy="no", save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = SAMTrainer(model, args, train_dataset=train, sam_config=sam)  # SAM: Trainer(...)
    trainer.train()
    return model


models = {name: trained(sam) for name, sam in METHODS.items()}  # or folders of checkpoints, or a list of seeds for each
conditions = {"bits": [8, 3], "shares": [0.5], "corruptions": ["noise"], "severities": [3]}
seen = ViTImageProcessor(image_mean=[0.0], image_std=[1.0])  # which number is black, and which white
found = robustness.compare(models, test, calibration=held_out, processing_class=seen, conditions=conditions)
for condition, metrics in found.differences.items():
    accuracies = ", ".join(f"{name} {100 * (found.mean(condition, 'accuracy', name) or 0):.1f} %" for name in models)
    gain = metrics["accuracy"]["SAM"]
    print(f"{condition}: accuracy {accuracies}; difference {100 * gain.mean:+.1f} points", end=" ")
    print(f"({100 * gain.low:+.1f} to {100 * gain.high:+.1f})")  # over the choice of test images, not over seeds
