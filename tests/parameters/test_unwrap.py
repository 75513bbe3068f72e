# SPDX-License-Identifier: Apache-2.0
"""Is the model found inside wrappers, in any order?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hf_sam.parameters.choose import chosen
from hf_sam.parameters.unwrap import unwrapped

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "parallel of compiled": lambda model: nn.DataParallel(torch.compile(model)),
    "compiled of parallel": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_model_inside_is_found(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    assert unwrapped(wrap(model)) is model
    assert list(chosen(wrap(model), "norm")) == ["1.weight", "1.bias"]


def test_a_model_that_holds_compiled_parts_is_left_alone() -> None:
    model = nn.Sequential(torch.compile(nn.Linear(2, 2)))
    assert unwrapped(model) is model
