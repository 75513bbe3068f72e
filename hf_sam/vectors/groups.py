# SPDX-License-Identifier: Apache-2.0
"""Groups of tensors that an accelerator works on at once."""

from __future__ import annotations

from typing import Any


def alike(kinds: list[Any], sizes: list[int], most: int) -> list[list[int]]:
    """Return the indices of each kind, in groups that are closed when they reach a size."""
    groups: list[list[int]] = []
    for kind in dict.fromkeys(kinds):
        size = most
        for i in (i for i, k in enumerate(kinds) if k == kind):
            if size >= most:
                groups.append([])
                size = 0
            groups[-1].append(i)
            size += sizes[i]
    return groups
