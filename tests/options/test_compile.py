# SPDX-License-Identifier: Apache-2.0
"""Does torch.compile compile as often as with the plain Trainer, however many steps are taken?"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from hf_sam import SAMConfig
from tests.floor import compiles_models
from tests.models import build
from tests.options.pairs import trainer_on

pytestmark = pytest.mark.slow


def compiled(family: str, tmp_path: Any, sam: SAMConfig | None, steps: int, settings: Any) -> dict[str, int]:
    """Train so many steps and return how many graphs were captured, and how often a guard failed."""
    torch._dynamo.reset()
    counters.clear()
    model, data = build(family)
    trainer = trainer_on(
        model,
        data[:24],  # whole batches: a short one would be compiled again by the plain Trainer too
        tmp_path,
        sam=sam,
        max_steps=steps,
        torch_compile=True,
        torch_compile_backend="aot_eager",
        **dict(settings),
    )
    trainer.train()
    assert trainer.state.global_step == steps
    stats, frames = counters["stats"], counters["frames"]
    found = {"graphs": stats["unique_graphs"], "frames": frames["total"], "calls": stats["calls_captured"]}
    torch._dynamo.reset()
    return found


plain = cache(compiled)
CASES = {
    "whole window": ("llama", "batch", {}),
    "each micro-batch": ("llama", "micro_batch", {}),
    "adapters": ("lora", "batch", {}),
    "autocast and checkpointing": ("llama", "batch", {"bf16": True, "gradient_checkpointing": True}),
}


@compiles_models
@pytest.mark.parametrize("case", CASES)
def test_as_many_graphs_as_the_plain_trainer_and_no_more_with_more_steps(case: str, tmp_path: Any) -> None:
    family, scope, settings = CASES[case]
    given = tuple(settings.items())
    expected = plain(family, tmp_path.parent, None, 2, given)
    assert expected["graphs"] > 0
    assert compiled(family, tmp_path, SAMConfig(rho=0.1, sam_scope=scope), 5, given) == expected
