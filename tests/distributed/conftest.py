# SPDX-License-Identifier: Apache-2.0
"""What of these tests cannot run with the installed packages."""

from __future__ import annotations

import pytest

from tests.distributed.launch import FSDP2_ON_CPU

RESUMING = ("test_kills.py", "test_finetune.py")
LAUNCHING = ("test_launching.py", "test_nodes.py")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Spare a run without these tests what they import: DeepSpeed, FSDP."""
    return True if "not distributed" in config.getoption("markexpr") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what torch 2.6 cannot do on CPU processes with the plain Trainer either: shard with FSDP2, and resume."""
    for item in items:
        sharded = any(word in item.name for word in ("fsdp2", "shards"))
        if not FSDP2_ON_CPU and (item.path.name in RESUMING or (item.path.name in LAUNCHING and sharded)):
            item.add_marker(pytest.mark.skip(reason="torch 2.6 neither resumes nor shards with FSDP2 on CPU processes"))
