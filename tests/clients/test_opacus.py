# SPDX-License-Identifier: Apache-2.0
"""Is differentially private training refused, whose noise would be too small for two passes?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from hf_sam import SAMConfig, SAMTrainer

opacus = pytest.importorskip("opacus")


def wrapped() -> tuple[nn.Module, torch.optim.Optimizer]:
    from opacus.optimizers import DPOptimizer

    model = opacus.GradSampleModule(nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, DPOptimizer(optimizer, noise_multiplier=1.0, max_grad_norm=0.3, expected_batch_size=4)


def refusal(folder: Path, model: nn.Module, **kwargs: Any) -> str:
    args = TrainingArguments(str(folder / "out"), use_cpu=True, report_to="none")
    with pytest.raises(NotImplementedError) as caught:
        SAMTrainer(model, args, **kwargs)
    assert not (folder / "out").exists()
    return str(caught.value)


def test_its_module_is_refused(tmp_path: Path) -> None:
    model, _ = wrapped()
    message = refusal(tmp_path, model)
    assert message.startswith("GradSampleModule makes training differentially private")
    assert "sam_variant='none'" in message


def test_its_optimizer_is_refused(tmp_path: Path) -> None:
    _, optimizer = wrapped()
    assert refusal(tmp_path, nn.Linear(2, 1), optimizers=(optimizer, None)).startswith("DPOptimizer makes")


def test_a_module_with_its_hooks_is_refused(tmp_path: Path) -> None:
    model, _ = wrapped()
    assert "differentially private" in refusal(tmp_path, model._module)


def test_without_sam_it_is_nobodys_business(tmp_path: Path) -> None:
    model, optimizer = wrapped()
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    SAMTrainer(model, args, optimizers=(optimizer, None), sam_config=SAMConfig(sam_variant="none"))
