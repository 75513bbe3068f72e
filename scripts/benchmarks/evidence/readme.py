# SPDX-License-Identifier: Apache-2.0
"""Where in a text do tables belong, and is what stands there what was measured?"""

from __future__ import annotations

import re

from hf_sam.cli.common.errors import UserError

BLOCK = re.compile(r"(<!-- table: (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, tables: dict[str, list[str]]) -> str:
    """Return the text with every table between its marks.

    Raises:
        UserError: if a table has no place, or a place no table.
    """
    places = [match["name"] for match in BLOCK.finditer(text)]
    if sorted(places) != sorted(tables):
        missing, foreign = sorted(set(tables) - set(places)), sorted(set(places) - set(tables))
        raise UserError(f"README.md: no place for the tables {missing}, or no table for the places {foreign}.")
    return BLOCK.sub(lambda match: match[1] + "\n".join(tables[match["name"]]) + "\n" + match[3], text)


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" if set(line) != {"---"} else "|" + "---|" * len(line) for line in lines]
