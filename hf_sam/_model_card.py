# SPDX-License-Identifier: Apache-2.0
"""Sections of model cards."""

from __future__ import annotations

import re


def with_section(card: str, section: str, *, end: str, before: str | None = None) -> str:
    r"""Return a model card's text with `section` in it, in place of an earlier version of that section.

    Args:
        card: Markdown.
        section: Markdown. Its first line is the heading by which an earlier version is found; `end` is its last line.
        end: a line that is in no such section except as the last one.
        before: heading in front of which the section goes; without one, or in a card without it, it goes to the end.

    Example:
        >>> card = with_section("# Model", "## Flatness\n3\n<!-- end -->\n", end="<!-- end -->")
        >>> card
        '# Model\n\n## Flatness\n3\n<!-- end -->\n'
        >>> with_section(card, "## Flatness\n2\n<!-- end -->\n", end="<!-- end -->")
        '# Model\n\n## Flatness\n2\n<!-- end -->\n'
    """
    card = re.sub(_pattern(section.partition("\n")[0], end), "", card, flags=re.DOTALL)
    if before is None or before not in card:
        return f"{card.rstrip()}\n\n{section}"
    above, below = card.split(before, 1)
    return f"{above}{section}\n{before}{below}"


def section_in(card: str, heading: str, *, end: str) -> str | None:
    """Return the section of a card that begins with `heading` and ends with the line `end`; None if there is none."""
    found = re.search(_pattern(heading, end), card, flags=re.DOTALL)
    return found.group().rstrip() + "\n" if found else None


def _pattern(heading: str, end: str) -> str:
    return rf"{re.escape(heading)}\n.*?\n{re.escape(end)}(\n\n?|\Z)"
