# SPDX-License-Identifier: Apache-2.0
"""Does `sharpness_aware_grad` go with Lightning's two ways of optimising?"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_sam import sharpness_aware_grad
from tests.compare import bits, same_bits

lightning = pytest.importorskip("lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def data() -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, generator=generator), i % 3) for i in range(32)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


class Base(lightning.LightningModule):
    def __init__(self, rho: float | None, *, accumulate: bool = False) -> None:
        super().__init__()
        self.net, self.rho, self.accumulate = net(), rho, accumulate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class Automatic(Base):
    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def optimizer_step(self, epoch: int, index: int, optimizer: Any, closure: Any = None) -> None:
        if self.rho is None:
            optimizer.step(closure=closure)
            return
        params = self.net.parameters()
        loss = sharpness_aware_grad(closure, params, rho=self.rho, accumulate=self.accumulate)
        optimizer.step(closure=lambda: loss)


class Manual(Base):
    automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            return loss

        closure() if self.rho is None else sharpness_aware_grad(closure, self.net.parameters(), rho=self.rho)
        optimizer.step()


def trained(module: Any, **options: Any) -> list[Tensor]:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    torch.manual_seed(1)
    lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet, **options).fit(module, DataLoader(data(), batch_size=8))
    return bits(module.net.parameters())


def by_hand(rho: float) -> list[Tensor]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    for x, y in DataLoader(data(), batch_size=8):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        sharpness_aware_grad(closure, model.parameters(), rho=rho)
        optimizer.step()
    return bits(model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Automatic, Manual])
def test_a_radius_of_zero_is_plain_and_another_one_is_a_hand_written_loops(kind: Any) -> None:
    assert same_bits(trained(kind(None)), trained(kind(0.0)))
    assert same_bits(by_hand(0.1), trained(kind(0.1)))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}], ids=str)
def test_accumulation_and_clipping_are_lightnings(options: dict[str, Any]) -> None:
    plain = trained(Automatic(None), **options)
    assert same_bits(plain, trained(Automatic(0.0, accumulate=True), **options))
    assert not same_bits(plain, trained(Automatic(0.1, accumulate=True), **options))
