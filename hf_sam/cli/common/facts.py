# SPDX-License-Identifier: Apache-2.0
"""What was decided while the data were read, for people to check before anything is trained?"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Lengths:
    """Tokens of the texts of one set, before they are cut."""

    median: int
    longest: int
    cut: int  # how many texts are longer than `limit`
    count: int
    limit: int


@dataclass
class Facts:
    """Sentences for people; nothing else depends on them."""

    sources: dict[str, str] = field(default_factory=dict)  # split -> how the user named it
    columns: str = ""
    problem: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    examples: list[tuple[str, str]] = field(default_factory=list)  # an input and its label
