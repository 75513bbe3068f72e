# SPDX-License-Identifier: Apache-2.0
"""Gradients of some parameters are averaged over processes a bucket at a time."""

from __future__ import annotations

import pytest
import torch

from hf_sam.trainer import ascent_pass
from hf_sam.trainer.ascent_pass import buckets


def test_buckets_hold_every_gradient_once_and_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascent_pass, "BUCKET", 10)
    sizes = [4, 4, 30, 3, 3, 3, 3]
    grads = [torch.randn(n, dtype=torch.float64 if n == 4 else torch.float32) for n in sizes]
    found = [[t.numel() for t in bucket] for bucket in buckets(grads)]
    assert found == [[4, 4], [30], [3, 3, 3], [3]]
