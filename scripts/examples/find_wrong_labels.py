# SPDX-License-Identifier: Apache-2.0
"""Find wrong labels: train on them with SAM and list the examples with the highest loss. What differs has `# SAM`.

python scripts/examples/find_wrong_labels.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from transformers import ResNetConfig, ResNetForImageClassification, TrainingArguments, set_seed

from hf_sam import SAMConfig, SAMTrainer

METHODS = {"AdamW": SAMConfig(sam_variant="none"), "SAM": SAMConfig(rho=0.1)}  # SAM: "none" is the plain Trainer
digits = load_digits()
pixels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
true = torch.tensor(digits.target)
noise = torch.Generator().manual_seed(0)
is_wrong = torch.rand(len(true), generator=noise) < 0.2
given = torch.where(is_wrong, (true + torch.randint(1, 10, true.shape, generator=noise)) % 10, true)
data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, given, strict=True)]


def losses(sam: SAMConfig) -> torch.Tensor:
    """Train, and return the loss of each example with the label it was given."""
    set_seed(0)
    model = ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, num_labels=10, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic"
        )
    )  # fmt: skip
    args = TrainingArguments(
        "outputs/examples/find_wrong_labels", num_train_epochs=6, per_device_train_batch_size=64, learning_rate=1e-2,
        logging_strategy="no", save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = SAMTrainer(model, args, train_dataset=data, sam_config=sam)  # SAM: Trainer(...)
    trainer.train()
    logits = torch.tensor(trainer.predict(data).predictions)
    return torch.nn.functional.cross_entropy(logits, given, reduction="none")


for name, sam in METHODS.items():
    loss = losses(sam)
    suspects = loss.argsort(descending=True)[: int(0.2 * len(data))]  # as many as are thought to be wrong
    found = is_wrong[suspects].sum()
    print(
        f"{name}: of the {len(suspects)} examples with the highest loss {100 * found / len(suspects):.0f} % are wrong "
        f"(precision), which is {100 * found / is_wrong.sum():.0f} % of all wrong ones (recall); "
        f"ROC-AUC {roc_auc_score(is_wrong, loss):.3f}"
    )
worst = ", ".join(f"{i} (is {true[i]}, labelled {given[i]})" for i in suspects[:5].tolist())
print(f"look at these first: {worst}")
