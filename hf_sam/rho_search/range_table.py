# SPDX-License-Identifier: Apache-2.0
"""Show a range test as a line, as a table of text, and as one of a notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from typing import Any

COLUMNS = ("rho", "mean rise of the loss", "least of a batch", "most")
MARK = "start with"
STYLE = "text-align: right; font-variant-numeric: tabular-nums"


def line(result: Any) -> str:
    """Return what a `RangeTest` is in one line, without what it has measured."""
    return (
        f"RangeTest(rho={result.rho:g}, variant={result.variant!r}, share={result.share:g}, steps={result.steps}, "
        f"batches={len(result.losses)}, radii={len(result.rhos)}, seconds={result.seconds:.3g})"
    )


def text(result: Any) -> str:
    """Return the reason of a `RangeTest`, and the table."""
    rows = [COLUMNS, *(cells for cells, _ in _rows(result))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    notes = ["", *(note for _, note in _rows(result))]
    table = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), note]).rstrip()
        for row, note in zip(rows, notes, strict=True)
    ]
    return "\n".join([result.reason, "", *table])


def as_html(result: Any) -> str:
    """Return the same for a notebook."""
    head = "".join(f'<th style="{STYLE}">{name}</th>' for name in COLUMNS)
    body = ""
    for cells, note in _rows(result):
        tag = "th" if note else "td"
        row = "".join(f'<{tag} style="{STYLE}">{cell}</{tag}>' for cell in cells)
        body += f'<tr>{row}<{tag} style="text-align: left">{note}</{tag}></tr>'
    title = f"<b>Start with rho = {result.rho:g}</b> for {html.escape(result.variant)}."
    return f"<p>{title} {html.escape(result.reason)}</p><table><tr>{head}<th></th></tr>{body}</table>"


def _rows(result: Any) -> Iterator[tuple[list[str], str]]:
    """Yield a line of the table for each radius and for the recommendation, which may lie between two of them."""
    is_shown = False
    for rho, mean, column in zip(result.rhos, result.relative_rises, zip(*result.rises, strict=True), strict=True):
        if not is_shown and result.rho <= rho:
            is_shown = True
            if result.rho < rho:
                yield [f"{result.rho:.3g}", "", "", ""], MARK
        shares = [rise / loss for rise, loss in zip(column, result.losses, strict=True)]
        shares.sort(key=lambda share: (math.isnan(share), share))
        note = MARK if rho == result.rho else ""
        yield [f"{rho:.3g}", *map(_percent, (mean, shares[0], shares[-1]))], note


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
