# SPDX-License-Identifier: Apache-2.0
"""How do other libraries' steps compare, in time, memory, and what a training run does to them?"""

from __future__ import annotations

from pathlib import Path

from scripts.evidence.bench_tables import copies, read
from scripts.evidence.readme import markdown

SIZES = ("22M", "110M")
"""Of the files bench/peers_SIZE.json."""


def peers(results: Path) -> list[str]:
    """Return the table of time and memory on top of two plain passes."""
    found = {size: read(path) for size in SIZES if (path := results / "bench" / f"peers_{size}.json").exists()}
    header = [""]
    for size in found:
        header += [f"{size}: time", "range", "memory"]
    rows = []
    for name, first in next(iter(found.values()))["results"].items():
        if first["floor"] == name:
            continue
        cells = [f"{name}, against {first['floor']}"]
        for each in found.values():
            row = each["results"][name]
            low, high = row["time_ratio_range"]
            cells += [f"{row['time_ratio']:.3f}", f"{low:.3f} to {high:.3f}", copies(row)]
        rows.append(cells)
    return markdown(header, rows)


def survived(results: Path) -> list[str]:
    """Return the table of what accumulation, autocast, dropout, resuming and the Trainer do to each."""
    checks = read(results / "bench" / f"peers_{SIZES[0]}.json")["checks"]
    columns = list(next(iter(checks.values())))
    return markdown(["", *columns], [[name, *found.values()] for name, found in checks.items()])
