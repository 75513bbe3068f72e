# SPDX-License-Identifier: Apache-2.0
"""Is every variant the same over parameters that are spread over processes as over whole ones?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from tests.tolerances import RELATIVE
from tests.variants.problems import every_case

pytestmark = pytest.mark.distributed


PROCESSES = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("shards")
    warm.run_together(PROCESSES, "tests.variants.shards_worker", folder, logs=folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@every_case
def test_shards_climb_combine_and_remember_as_whole_parameters(
    name: str, options: dict[str, Any], found: list[dict[str, Any]]
) -> None:
    results = [process[f"{name} {options}"] for process in found]
    assert max(result["error"] for result in results) < RELATIVE[torch.float64]
    assert all(result["resumes"] for result in results)
    assert any(result["empty"] for result in results)
