# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: one thread, one seed, no network."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace

# Before transformers is imported: a test that reached for the Hub would hang where there is no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two threads on a busy two-core machine are slower than one, and one adds in a fixed order. For processes of tests too.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

# Nothing heavy is imported above functions: the process that only hands out tests to others would wait for it.


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Look for examples in the docstrings of the package only: to look is to import, helpers and workers too."""
    found = yield
    return [each for each in found if type(each) is pytest.Module]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare a run the import of a file that says at its top that all of its tests are left out (`pytestmark`)."""
    if not collection_path.match("test_*.py"):
        return None
    marks = re.search(r"^pytestmark = (.*)$", collection_path.read_text(encoding="utf-8"), re.MULTILINE)
    names = re.findall(r"pytest\.mark\.(\w+)", marks[1]) if marks else []
    left_out = re.findall(r"not (\w+)", config.getoption("markexpr"))
    return True if set(names) & set(left_out) else None


def _freeze() -> None:
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """Spare the Trainer, which collects garbage at each start, all that was imported: most of the time of a test."""
    _freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Spare it what a file has imported and kept, too."""
    if nextitem is None or nextitem.path != item.path:
        _freeze()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random streams."""
    from transformers import set_seed

    set_seed(0)


def _seed_what_is_there() -> None:
    """Keep no formatted stack of each seeding for kinds of devices that are not there: milliseconds a test."""
    import torch

    for kind in (torch.cuda, torch.xpu, torch.mtia):
        if not kind.is_available():
            kind.traceback = SimpleNamespace(format_stack=list)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compute on one thread and show no bars; skip what needs a GPU where there is none."""
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    _seed_what_is_there()
    transformers_logging.disable_progress_bar()
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of one, for what shards and replicas do in one process."""
    import torch

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
