# SPDX-License-Identifier: Apache-2.0
"""Do two processes that share the examples find what one finds?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import warm
from tests.sharpness import processes_worker

pytestmark = pytest.mark.distributed


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    warm.run_together(2, "tests.sharpness.processes_worker", tmp_path, logs=tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first == second
    for family, values in first.items():
        alone = processes_worker.found(family)
        for name, value in values.items():
            assert value == pytest.approx(alone[name], rel=1e-8, abs=1e-12), (family, name)
