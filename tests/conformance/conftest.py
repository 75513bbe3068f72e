# SPDX-License-Identifier: Apache-2.0
"""Runs here are a few steps: let rho="auto" perturb in them as it does where a model memorises."""

from __future__ import annotations

import pytest

from hf_sam.radius import auto
from hf_sam.radius.memorisation import Memorisation


@pytest.fixture(autouse=True)
def memorising(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memorisation, "note", lambda self, passes: None)  # as where the passes are not counted
    monkeypatch.setattr(auto, "BEGIN", 2.0)  # and wherever the loss is
