# SPDX-License-Identifier: Apache-2.0
"""Does a result file say with which versions it was made?"""

from __future__ import annotations

import pytest

from hf_sam.cli.common.environment import environment


def test_versions_of_what_is_compared_with_are_recorded() -> None:
    found = environment("pytest", "a-package-that-is-not-there")
    assert found["pytest"] == pytest.__version__
    assert found["a-package-that-is-not-there"] is None
    assert {"hf_sam", "commit", "torch", "device"} <= set(found)
    assert "pytest" not in environment()
