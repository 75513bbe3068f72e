# SPDX-License-Identifier: Apache-2.0
"""Lay out a report: one HTML file that loads nothing, in tables and vector figures, down to a narrow screen."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.figure import Figure

STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,sans-serif;max-width:62rem;margin:1.5rem auto;padding:0 1rem;color:#1b1b1b}
body{background:#fff}
h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.25rem;margin-top:2.2rem}h3{font-size:1.05rem;margin-top:1.6rem}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;width:100%}
th,td{padding:.35rem .5rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}
th{font-weight:600}th:first-child,td:first-child{text-align:left;padding-left:0}
td:not(:first-child){white-space:nowrap;font-variant-numeric:tabular-nums}
tr.group td{font-weight:600;border-bottom:2px solid #999;padding-top:.9rem}
small{display:block;color:#555;font-size:.8rem;line-height:1.35;font-weight:400}
small.sure{color:#111;font-weight:700}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.2rem}
figure{margin:0}img{width:100%;height:auto}
figcaption,.note{color:#444;font-size:.9rem}
.facts td:not(:first-child){white-space:normal;text-align:left;overflow-wrap:anywhere}
@media(max-width:30rem){body{font-size:15px}th,td{padding:.3rem .35rem}}
@media print{.figures{display:block}figure{break-inside:avoid}}
"""


@dataclass
class Cell:
    """A number in a table, with what is said below it in small."""

    text: str
    below: str = ""
    sure: bool = False  # what is below is told apart by its weight, not by its colour


@dataclass
class Line:
    """A line of a table: a plain name, what it means, and a cell a column. Without cells it is a heading."""

    title: str
    help: str = ""
    cells: Sequence[Cell] = field(default_factory=list)


def table(head: Sequence[str], lines: Sequence[Line]) -> str:
    """Return a table that scrolls by itself where it is wider than the screen."""
    rows = ["".join(f"<th>{html.escape(each)}</th>" for each in ("", *head))]
    for line in lines:
        if not line.cells:
            rows.append(f'<td colspan="{len(head) + 1}">{html.escape(line.title)}</td>')
            continue
        said = f"<small>{html.escape(line.help)}</small>" if line.help else ""
        rows.append(f"<td>{html.escape(line.title)}{said}</td>" + "".join(map(_cell, line.cells)))
    kinds = ["", *("" if line.cells else ' class="group"' for line in lines)]
    body = "".join(f"<tr{kind}>{row}</tr>" for kind, row in zip(kinds, rows, strict=True))
    return f'<div class="wide"><table>{body}</table></div>'


def _cell(cell: Cell) -> str:
    kind = ' class="sure"' if cell.sure else ""
    below = f"<small{kind}>{html.escape(cell.below)}</small>" if cell.below else ""
    return f"<td>{html.escape(cell.text)}{below}</td>"


def facts(rows: dict[str, Any]) -> str:
    """Return a table of what was used, a name and its value a line."""
    body = "".join(f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f'<div class="wide"><table class="facts">{body}</table></div>'


def figures(drawn: Sequence[tuple[str, Figure]]) -> str:
    """Return figures beside each other, with their captions."""
    found = []
    for caption, figure in drawn:
        data, text = base64.b64encode(as_svg(figure)).decode(), html.escape(caption)
        image = f'<img alt="{text}" src="data:image/svg+xml;base64,{data}">'
        found.append(f"<figure>{image}<figcaption>{text}.</figcaption></figure>")
    return f'<div class="figures">{"".join(found)}</div>'


def as_svg(figure: Figure) -> bytes:
    """Return a figure as SVG, its letters drawn: no font of the reader's is needed."""
    stored = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "hf_sam"}):
        figure.savefig(stored, format="svg", metadata={"Date": None})
    return stored.getvalue()


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def page(title: str, parts: Sequence[str]) -> str:
    """Return the whole file."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
    )
    return f"{head}<body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
