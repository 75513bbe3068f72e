# SPDX-License-Identifier: Apache-2.0
"""Take sharpness-aware steps in Lightning. What differs has `# SAM`.

python scripts/examples/lightning_loop.py      # pip install lightning
"""

from collections.abc import Callable
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hf_sam import sharpness_aware_grad  # SAM


class Digits(lightning.LightningModule):
    """A small network for 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)

    # SAM: this method is all there is to add. Lightning's closure runs zero_grad, training_step and backward.
    def optimizer_step(self, epoch: int, index: int, optimizer: Any, closure: Callable[[], Any]) -> None:
        loss = sharpness_aware_grad(closure, self.parameters(), rho=0.05)
        optimizer.step(closure=lambda: loss)


lightning.seed_everything(0)
digits = load_digits()
x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
loader = DataLoader(TensorDataset(x[:1437], y[:1437]), batch_size=32, shuffle=True)
module = Digits()
trainer = lightning.Trainer(
    max_epochs=8, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
)  # fmt: skip
trainer.fit(module, loader)
module.eval()
print(f"test accuracy: {100 * (module.net(x[1437:]).argmax(-1) == y[1437:]).float().mean():.1f} %")
