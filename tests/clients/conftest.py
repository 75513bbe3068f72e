# SPDX-License-Identifier: Apache-2.0
"""Tests with packages that take seconds to import run among the slow ones, and spare the fast ones the import."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEAVY = ("trl", "sentence_transformers", "sparse_encoder", "pretrained", "cards", "lightning", "opacus")


def _is_heavy(path: Path) -> bool:
    return path.parent == HERE and path.name.startswith(tuple(f"test_{name}" for name in HEAVY))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare a run without slow tests what these import."""
    return True if "not slow" in config.getoption("markexpr") and _is_heavy(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them."""
    for item in items:
        if _is_heavy(item.path):
            item.add_marker(pytest.mark.slow)
