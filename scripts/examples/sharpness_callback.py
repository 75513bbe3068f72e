# SPDX-License-Identifier: Apache-2.0
"""Log how flat the loss is during a run, with AdamW and with SAM. What differs has `# SAM`.

python scripts/examples/sharpness_callback.py      # pip install "hf-sam[sharpness]"
"""

import torch
from sklearn.datasets import load_digits
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.sharpness import SharpnessCallback

METHODS = {"AdamW": SAMConfig(sam_variant="none"), "SAM": SAMConfig(rho=0.1)}  # SAM: "none" is the plain Trainer
digits = load_digits()
pixels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, digits.target, strict=True)]


def run(sam: SAMConfig) -> list[dict[str, float]]:
    set_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=4, num_channels=1, num_labels=10,
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        )
    )  # fmt: skip
    args = TrainingArguments(
        "outputs/examples/sharpness_callback", max_steps=60, per_device_train_batch_size=32, learning_rate=3e-3,
        logging_steps=30, save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = SAMTrainer(model, args, train_dataset=data[:1437], sam_config=sam)  # SAM: Trainer(...)
    # With any trainer: lambda_max of the Hessian and the rise of the loss at radius 0.05, always on the same examples.
    trainer.add_callback(SharpnessCallback(trainer, every=30, dataset=data[:64], measures=["lambda_max", "sam"]))
    trainer.train()
    return [log for log in trainer.state.log_history if "sharpness/sam" in log]


for name, sam in METHODS.items():
    for log in run(sam):
        values = f"lambda_max {log['sharpness/lambda_max']:6.1f}, rise {log['sharpness/sam']:.4f}"
        print(f"{name}, step {log['step']:3.0f}: {values}")
