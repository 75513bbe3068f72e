# SPDX-License-Identifier: Apache-2.0
"""Runs here are short: let rho="auto" perturb in them as it does in runs of many epochs."""

from __future__ import annotations

import pytest

from hf_sam.radius import auto


@pytest.fixture(autouse=True)
def after_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "PASSES", 1)
    monkeypatch.setattr(auto, "PLAIN_PASSES", 1)
