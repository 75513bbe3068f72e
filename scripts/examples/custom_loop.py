# SPDX-License-Identifier: Apache-2.0
"""Take sharpness-aware steps in a loop of your own, without a Trainer. What differs has `# SAM`.

python scripts/examples/custom_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hf_sam import sharpness_aware_grad  # SAM

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
train, test = TensorDataset(x[:1437], y[:1437]), (x[1437:], y[1437:])
model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for epoch in range(8):
    model.train()
    total = 0.0
    for inputs, labels in DataLoader(train, batch_size=32, shuffle=True):

        def closure(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:  # SAM: a function, called twice
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            torch.autograd.backward(loss)
            return loss

        # SAM: in place of `loss = closure()`. The buffers of batch normalisation change in the first call only.
        loss = sharpness_aware_grad(closure, model.parameters(), rho=0.05, buffers=model.buffers())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(labels)  # SAM: L(w), what a plain loop would have shown
    print(f"epoch {epoch + 1}: training loss {total / len(train):.3f}")

model.eval()
print(f"test accuracy: {100 * (model(test[0]).argmax(-1) == test[1]).float().mean():.1f} %")
