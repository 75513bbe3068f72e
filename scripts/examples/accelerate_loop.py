# SPDX-License-Identifier: Apache-2.0
"""Take sharpness-aware steps in a loop with accelerate. What differs has `# SAM`.

python scripts/examples/accelerate_loop.py                                        # one process
accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hf_sam import sharpness_aware_grad  # SAM

accelerator = Accelerator(cpu=True)  # add mixed_precision="bf16" where it pays
torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
loader = DataLoader(TensorDataset(x[:1437], y[:1437]), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=8 * len(loader))
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

for epoch in range(8):
    model.train()
    for inputs, labels in loader:

        def closure(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:  # SAM: a function, called twice
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            accelerator.backward(loss)
            return loss

        loss = sharpness_aware_grad(closure, model.parameters(), rho=0.05)  # SAM: in place of `loss = closure()`
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    accelerator.print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")

model.eval()
accelerator.print(f"test accuracy: {100 * (model(x[1437:]).argmax(-1) == y[1437:]).float().mean():.1f} %")
