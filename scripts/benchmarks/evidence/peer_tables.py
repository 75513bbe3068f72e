# SPDX-License-Identifier: Apache-2.0
"""How do other libraries' steps compare, in time, memory, and what a training run does to them?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.benchmarks.evidence.bench_tables import copies, read
from scripts.benchmarks.evidence.pages import markdown

FILES = ("peers_22M", "peers_accumulation", "peers_110M")
"""Of the results in bench/, those with all sides first; a file that is not there is left out."""


def peers(results: Path) -> list[str]:
    """Return the table of time and memory on top of two plain passes."""
    found = [read(path) for name in FILES if (path := results / "bench" / f"{name}.json").exists()]
    header = [""]
    for each in found:
        header += [f"{heading(each)}: time", "of it outside of the passes", "memory"]
    rows = []
    for name, first in found[0]["results"].items():
        if first["floor"] == name:
            continue
        cells = [f"{name}, against {first['floor']}"]
        for each in found:
            row = each["results"].get(name)
            cells += cells_of(row) if row else [""] * 3
        rows.append(cells)
    return markdown(header, rows)


def heading(measured: dict[str, Any]) -> str:
    """Return size of the model and shape of a step's batch."""
    settings = measured["settings"]
    parts = f" in {settings['accumulation']}" if settings["accumulation"] > 1 else ""
    return f"{measured['parameters'] / 1e6:.0f}M, {settings['batch']} x {settings['length']} tokens{parts}"


def cells_of(row: dict[str, Any]) -> list[str]:
    """Return ratio with its range, the part outside of passes and update, where it was watched, and memory."""
    low, high = row["time_ratio_range"]
    share = row["share_outside_passes"]
    own = "" if share is None else f"{100 * share:.1f} %"
    return [f"{row['time_ratio']:.3f} ({low:.3f} to {high:.3f})", own, copies(row)]


def survived(results: Path) -> list[str]:
    """Return the table of what accumulation, autocast, dropout, resuming and the Trainer do to each."""
    checks = read(results / "bench" / f"{FILES[0]}.json")["checks"]
    columns = list(next(iter(checks.values())))
    return markdown(["", *columns], [[name, *found.values()] for name, found in checks.items()])
