# SPDX-License-Identifier: Apache-2.0
"""The smallest models that show one thing each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Gain(nn.Module):
    """One weight per feature: one-dimensional, and called a weight, as in a normalisation layer."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Classifier(nn.Module):
    """The model of tests/reference/sam_numpy.py, with the same names."""

    def __init__(self, inputs: int = 5, hidden: int = 7, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.gain = Gain(hidden)
        self.second = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.gain(self.first(x).tanh()))


class Tied(nn.Module):
    """An embedding that is also the output projection."""

    def __init__(self, vocabulary: int = 6, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.out = nn.Linear(width, vocabulary)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embed(tokens))


class Branches(nn.Module):
    """Each call takes the branches named in `use[call]`; the stem is always used."""

    def __init__(self, use: list[set[str]]) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)
        self.use, self.calls = use, 0

    def forward(self, x: Tensor) -> Tensor:
        names = self.use[self.calls]
        self.calls += 1
        x = self.stem(x).tanh()
        return sum((getattr(self, name)(x) for name in sorted(names)), start=x)


def backward_closure(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a closure that computes `loss()`, differentiates it and returns it."""

    def closure() -> Tensor:
        value = loss()
        value.backward()
        return value

    return closure


def square_closure(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Return a closure for the mean square of what the model makes of x."""
    return backward_closure(lambda: model(x).square().mean())
