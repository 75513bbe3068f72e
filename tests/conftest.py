# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: one thread, one seed, no network."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Before transformers is imported: a test that reached for the Hub would hang where there is no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

# Two threads on a busy two-core machine are slower than one, and one adds in a fixed order.
torch.set_num_threads(1)
transformers_logging.disable_progress_bar()


def pytest_collection_finish() -> None:
    """Spare the Trainer, which collects garbage at each start, all that was imported: most of the time of a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random streams."""
    set_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one, for what shards and replicas do in one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
