# SPDX-License-Identifier: Apache-2.0
"""`sharpness_aware_grad` in a loop without a Trainer, on two processes and on four: uneven shards, empty ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import warm
from tests.distributed.hand_written import model
from tests.distributed.launch import FSDP2_ON_CPU

pytestmark = pytest.mark.distributed

ENGINES = ["ddp", "fsdp2"] if FSDP2_ON_CPU else ["ddp"]


@pytest.fixture(scope="module", params=[2, 4])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, list[torch.Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("loop")
    warm.run_together(request.param, "tests.distributed.hand_written", folder, *ENGINES, logs=folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("variant", ["sam", "asam"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_loop_on_several_processes_trains_as_on_one(
    engine: str, variant: str, found: list[dict[str, list[torch.Tensor]]]
) -> None:
    for result in found:
        for one, several, start in zip(
            result[f"one {variant}"], result[f"{engine} {variant}"], model().parameters(), strict=True
        ):
            torch.testing.assert_close(several, one, rtol=0, atol=1e-14)
            assert (one - start).abs().max() > 1e-3
        other = {"sam": "asam", "asam": "sam"}[variant]
        assert (result[f"{engine} {variant}"][0] - result[f"one {other}"][0]).abs().max() > 1e-4
