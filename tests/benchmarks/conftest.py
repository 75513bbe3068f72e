# SPDX-License-Identifier: Apache-2.0
"""The real data that the tests of the scripts read too."""

from __future__ import annotations

from tests.scripts.conftest import real_data

__all__ = ["real_data"]
