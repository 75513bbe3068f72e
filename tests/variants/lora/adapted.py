# SPDX-License-Identifier: Apache-2.0
"""Small networks under real LoRA layers, and the same ones as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from tests.reference.lora_numpy import LAYERS
from tests.reference.sam_numpy import Arrays

peft = pytest.importorskip("peft")
INPUTS, HIDDEN, CLASSES, EXAMPLES = 5, 7, 3, 16
RANK, ALPHA = 2, 3.0
SCALING = ALPHA / RANK
STEPS = 20


class Net(nn.Module):
    """The network of tests/reference/lora_numpy.py, with a layer that is trained as a whole where it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, HIDDEN)
        self.second = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Headed(Net):
    """With a head that is no LoRA layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(super().forward(x))


class Mixed(nn.Module):
    """An embedding, a convolution and a transposed linear layer, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.transposed = Conv1D(3, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transposed(self.conv(self.embedding(tokens).view(-1, 2, 2, 2)).flatten(1))


def adapted(net: nn.Module | None = None, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Return a network under LoRA whose B is not zero."""
    options = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(LAYERS), "init_lora_weights": False, **options}
    return peft.get_peft_model((Net() if net is None else net).to(dtype), peft.LoraConfig(**options)).to(dtype)


def layer(model: Any, name: str) -> Any:
    """Return the LoRA layer called so in the network."""
    return model.base_model.model.get_submodule(name)


def factors(model: Any, name: str, adapter: str = "default") -> tuple[nn.Parameter, nn.Parameter]:
    """Return A and B of a layer of `model`."""
    found = layer(model, name)
    return found.lora_A[adapter].weight, found.lora_B[adapter].weight


def data(examples: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    """Return inputs and labels."""
    return torch.randn(examples, INPUTS, dtype=torch.float64), torch.randint(CLASSES, (examples,))


def backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Leave the gradient of the mean cross entropy, and nothing else, in `.grad`."""
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()


def as_numpy(model: Any) -> tuple[Arrays, Arrays]:
    """Return the frozen weights and the factors."""
    frozen, trained = {}, {}
    for name in LAYERS:
        base = layer(model, name).get_base_layer()
        frozen[f"{name}.weight"] = base.weight.detach().numpy().copy()
        frozen[f"{name}.bias"] = base.bias.detach().numpy().copy()
        for letter, factor in zip("AB", factors(model, name), strict=True):
            trained[f"{name}.{letter}"] = factor.detach().numpy().copy()
    return frozen, trained


def trained_tensors(model: Any) -> dict[str, Tensor]:
    """Return A and B of both layers by the names of `as_numpy`."""
    pairs = {name: factors(model, name) for name in LAYERS}
    return {f"{name}.{letter}": t for name, pair in pairs.items() for letter, t in zip("AB", pair, strict=True)}


def distance(model: Any, expected: Arrays) -> float:
    """Return the largest difference of the factors, as a share of the largest magnitude in that tensor."""
    return max(
        float(np.abs(t.detach().numpy() - expected[name]).max() / np.abs(expected[name]).max())
        for name, t in trained_tensors(model).items()
    )
