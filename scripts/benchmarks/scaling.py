# SPDX-License-Identifier: Apache-2.0
"""Compute the tables of docs/scaling.md: what SAM costs on many devices.

python scripts/benchmarks/scaling.py
python scripts/benchmarks/scaling.py --check     # change nothing; status 1 if a table of the page differs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# `python scripts/benchmarks/scaling.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import PlainParser
from scripts.benchmarks.evidence.pages import with_tables
from scripts.benchmarks.evidence.scaling_tables import TABLES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables; wrong input is one line on stderr and status 2."""
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--page", type=Path, default=PAGE, help="the text with the tables")
    parser.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    try:
        options = parser.parse_args(argv)
        before = options.page.read_text(encoding="utf-8")
        after = with_tables(before, {name: table() for name, table in TABLES.items()})
        if options.check:
            return int(after != before)
        options.page.write_text(after, encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
