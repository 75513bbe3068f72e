# SPDX-License-Identifier: Apache-2.0
"""Write the tables of README.md and docs, and draw their figures (`make results`).

python scripts/benchmarks/plot.py
python scripts/benchmarks/plot.py --check     # change nothing; status 1 if a table differs

What was measured comes from the files in scripts/benchmarks/results alone, settings and arguments from the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# `python scripts/benchmarks/plot.py` puts its folder on the path, the imports below need the repository's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hf_sam.cli.common.errors import UserError
from hf_sam.cli.common.parsing import PlainParser
from scripts.benchmarks.evidence import (
    afterwards_tables,
    bench_tables,
    difference_plot,
    flatness_plot,
    flatness_tables,
    kept_tables,
    method_tables,
    noise_plot,
    peer_tables,
    preset_tables,
    radius_plot,
    radius_table,
    reference_tables,
    regime_tables,
    scaling_tables,
    suspects_table,
)
from scripts.benchmarks.evidence.pages import check_places, pages, with_tables

SHOWN = ("full", "free", "adamw, half of the epochs", "adamw, early stopping")
"""Methods in the picture of the presets in fine-tuning."""
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "benchmarks" / "results"


def radii(results: Path) -> list[str]:
    """Return the table of rho="auto" against fixed radii."""
    return radius_table.table(*radius_table.read(results))


def draw_radii(results: Path, path: Path) -> None:
    """Draw the same."""
    grid, found = radius_table.read(results)
    radius_plot.draw(grid.titles, found, path)


def of_grid(name: str, tasks: str = "") -> dict[str, Callable[[Path], list[str]]]:
    """Return the tables of scores and differences of a grid's tasks, by their names in the pages."""
    title = f"{name} {tasks}".strip()
    return {
        title: lambda results: method_tables.scores(results, name, tasks),
        f"{title} differences": lambda results: method_tables.differences(results, name, tasks),
    }


def of_variants() -> dict[str, Callable[[Path], list[str]]]:
    """Return the tables of cost and the citations of the library's variants, by their names in the pages."""
    found: dict[str, Callable[[Path], list[str]]] = {}
    for name in bench_tables.words()["variants"]:
        found[f"variant {name}"] = partial(bench_tables.variant, name=name)
        found[f"citation {name}"] = partial(bench_tables.citation, name=name)
    return found


def draw_noise(results: Path, path: Path) -> None:
    """Draw what is left of the accuracy where labels are wrong."""
    noise_plot.draw(*method_tables.read(results, "noise"), path)


def of_scaling() -> dict[str, Callable[[Path], list[str]]]:
    """Return the tables that are computed, and need no results."""
    return {name: partial(_without_results, table) for name, table in scaling_tables.TABLES.items()}


def _without_results(table: Callable[[], list[str]], results: Path) -> list[str]:
    del results
    return table()


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "regimes": regime_tables.regimes,
    "sizes": regime_tables.sizes,
    "settings": reference_tables.settings,
    **reference_tables.arguments(),
    "side by side": preset_tables.side_by_side,
    "presets": preset_tables.presets,
    "radii": radii,
    "find_rho": preset_tables.find_rho,
    "variants": bench_tables.variants,
    **of_variants(),
    "savings": bench_tables.savings,
    "limits": bench_tables.limits,
    "flatness": flatness_tables.flatness,
    "flatness bench": bench_tables.flatness_bench,
    **of_grid("noise", "digits"),
    **of_grid("noise", "fashion"),
    **of_grid("noise", "cifar10"),
    **of_grid("glue"),
    "glue losses": lambda results: method_tables.losses(results, "glue"),
    **of_grid("lora"),
    "lora losses": lambda results: method_tables.losses(results, "lora"),
    **of_grid("ablations"),
    **of_grid("radius"),
    "radius full against": lambda results: method_tables.versus(results, "radius", "full", "adamw"),
    "radius cells": lambda results: method_tables.over_cells(results, "radius", ("full", "free")),
    "radius losses": lambda results: method_tables.losses(results, "radius"),
    "radius kept": lambda results: kept_tables.kept(results, "radius"),
    "radius kept full": lambda results: kept_tables.kept_differences(results, "radius", "full"),
    "radius kept against half": partial(
        kept_tables.kept_differences, name="radius", method="full", other="adamw, half of the epochs"
    ),
    "radius kept free": lambda results: kept_tables.kept_differences(results, "radius", "free"),
    "suspects": suspects_table.table,
    "transfer": partial(afterwards_tables.transfer, metric="accuracy"),
    "transfer losses": partial(afterwards_tables.transfer, metric="nll"),
    "image": partial(afterwards_tables.image, task="clean", metric="accuracy"),
    "image losses": partial(afterwards_tables.image, task="clean", metric="nll"),
    "peers": peer_tables.peers,
    "peers survived": peer_tables.survived,
    **of_scaling(),
}
"""By the name between the marks in a page."""

FIGURES: dict[str, Callable[[Path, Path], None]] = {
    "auto.png": draw_radii,
    "noise.png": draw_noise,
    "presets.png": partial(difference_plot.draw, name="radius", methods=SHOWN),
    "landscape.png": flatness_plot.draw,
}
"""By the name of the file in docs/evidence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write tables and figures; wrong input is one line on stderr and status 2."""
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with README.md and docs")
    parser.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    try:
        options = parser.parse_args(argv)
        before = {path: path.read_text(encoding="utf-8") for path in pages(options.root)}
        check_places(before.values(), TABLES)
        tables = {name: table(options.results) for name, table in TABLES.items()}
        after = {path: with_tables(text, tables) for path, text in before.items()}
        if options.check:
            return int(after != before)
        for name, draw in FIGURES.items():
            draw(options.results, options.root / "docs" / "evidence" / name)
        for path in before:
            if after[path] != before[path]:
                path.write_text(after[path], encoding="utf-8")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
