# SPDX-License-Identifier: Apache-2.0
"""Draw the README's figures and write its tables, from the files in scripts/benchmarks/results alone (`make results`).

python scripts/benchmarks/plot.py
python scripts/benchmarks/plot.py --check     # change nothing; status 1 if a table of the README differs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# `python scripts/benchmarks/plot.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import PlainParser
from scripts.benchmarks.evidence import (
    bench_tables,
    flatness_plot,
    flatness_tables,
    method_tables,
    noise_plot,
    peer_tables,
    preset_tables,
    radius_plot,
    radius_table,
)
from scripts.benchmarks.evidence.readme import with_tables

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "benchmarks" / "results"


def radii(results: Path) -> list[str]:
    """Return the table of rho="auto" against fixed radii."""
    return radius_table.table(*radius_table.read(results))


def draw_radii(results: Path) -> None:
    """Draw the same."""
    grid, found = radius_table.read(results)
    radius_plot.draw(grid.titles, found, results / "rho_auto" / "auto.png")


def of_grid(name: str, tasks: str = "") -> dict[str, Callable[[Path], list[str]]]:
    """Return the tables of scores and differences of a grid's tasks, by their names in the README."""
    title = f"{name} {tasks}".strip()
    return {
        title: lambda results: method_tables.scores(results, name, tasks),
        f"{title} differences": lambda results: method_tables.differences(results, name, tasks),
    }


def draw_noise(results: Path) -> None:
    """Draw what is left of the accuracy where labels are wrong."""
    noise_plot.draw(*method_tables.read(results, "noise"), results / "noise" / "noise.png")


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "side by side": preset_tables.side_by_side,
    "presets": preset_tables.presets,
    "radii": radii,
    "find_rho": preset_tables.find_rho,
    "variants": bench_tables.variants,
    "savings": bench_tables.savings,
    "limits": bench_tables.limits,
    "flatness": flatness_tables.flatness,
    "flatness bench": bench_tables.flatness_bench,
    **of_grid("noise", "digits"),
    **of_grid("noise", "fashion"),
    **of_grid("noise", "cifar10"),
    **of_grid("glue"),
    **of_grid("lora"),
    **of_grid("ablations"),
    "peers": peer_tables.peers,
    "peers survived": peer_tables.survived,
}
"""By the name between the marks in the README."""

FIGURES: list[Callable[[Path], None]] = [draw_radii, draw_noise, flatness_plot.draw]


def main(argv: Sequence[str] | None = None) -> int:
    """Write tables and figures; wrong input is one line on stderr and status 2."""
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the text with the tables")
    parser.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    try:
        options = parser.parse_args(argv)
        before = options.readme.read_text(encoding="utf-8")
        after = with_tables(before, {name: table(options.results) for name, table in TABLES.items()})
        if options.check:
            return int(after != before)
        for draw in FIGURES:
            draw(options.results)
        options.readme.write_text(after, encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
