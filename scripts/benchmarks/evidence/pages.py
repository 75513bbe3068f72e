# SPDX-License-Identifier: Apache-2.0
"""Where in the pages do tables belong, and is what stands there what was measured?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hf_sam.cli.common.errors import UserError

BLOCK = re.compile(r"(<!-- table: (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages(root: Path) -> list[Path]:
    """Return the README and all pages of the documentation."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def check_places(texts: Iterable[str], tables: Iterable[str]) -> None:
    """Check that every table has a place in some page, and every place a table.

    Raises:
        UserError: naming those that have none.
    """
    places = {match["name"] for text in texts for match in BLOCK.finditer(text)}
    missing, foreign = sorted(set(tables) - places), sorted(places - set(tables))
    if missing or foreign:
        raise UserError(f"README.md and docs: no place for the tables {missing}, or no table for the places {foreign}.")


def with_tables(text: str, tables: Mapping[str, list[str]]) -> str:
    """Return the text of a page with every table between its marks."""
    return BLOCK.sub(lambda match: match[1] + "\n".join(tables[match["name"]]) + "\n" + match[3], text)


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" if set(line) != {"---"} else "|" + "---|" * len(line) for line in lines]
