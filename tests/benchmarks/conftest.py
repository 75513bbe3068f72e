# SPDX-License-Identifier: Apache-2.0
"""The real data and the tiny model that the tests of the scripts read too."""

from __future__ import annotations

from tests.scripts.conftest import bert, real_data

__all__ = ["bert", "real_data"]
