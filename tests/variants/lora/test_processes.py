# SPDX-License-Identifier: Apache-2.0
"""Do the regularisers of LoRA do on two processes what they do on one?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import warm
from tests.distributed.launch import FSDP2_ON_CPU

pytestmark = pytest.mark.distributed
ENGINES = ["ddp", "fsdp2"] if FSDP2_ON_CPU else ["ddp"]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one_does(engine: str, tmp_path: Path) -> None:
    warm.run_together(2, "tests.variants.lora.processes_worker", tmp_path, engine, logs=tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for kind in ("nBAR", "oBAR", "Bi-LoRA"):
            for one, several in zip(found[f"one {kind}"], found[f"{engine} {kind}"], strict=True):
                torch.testing.assert_close(several, one, rtol=0, atol=1e-13)
        for other in ("oBAR", "Bi-LoRA"):
            assert any(
                (n - o).abs().max() > 1e-3 for n, o in zip(found["one nBAR"], found[f"one {other}"], strict=True)
            )
