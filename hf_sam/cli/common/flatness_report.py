# SPDX-License-Identifier: Apache-2.0
"""What does a reader see of the measurements? Figures, and one HTML file with a surface that can be turned."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure

from hf_sam.cli.common.flatness import COLUMNS, NORMAL, cell, interval
from hf_sam.sharpness import plots

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}figure{margin:1.5rem 0}
figcaption,.note{color:#555;font-size:.9rem}"""


def write_figures(found: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Draw what was measured, as PNG files; return them by caption."""
    models = found["models"]
    drawn: dict[str, tuple[str, Figure]] = {}
    if densities := {name: each.density for name, each in models.items() if each.density}:
        drawn["Spectrum of the Hessian"] = "spectrum", plots.spectrum(densities)
    if lines := {name: each.line for name, each in models.items() if each.line}:
        drawn["Loss along one random direction, the same for all"] = "landscape_1d", plots.landscape_1d(lines)
    if squares := {name: each.square for name, each in models.items() if each.square}:
        drawn["Loss along two random directions, the same for all"] = "landscape_2d", plots.landscape_2d(squares)
    if found["lines"]:
        drawn["Loss on the way between checkpoints"] = (
            "interpolation",
            plots.interpolation(found["lines"], found["metric"]),
        )
    paths = {}
    for caption, (name, figure) in drawn.items():
        paths[caption] = folder / f"{name}.png"
        figure.savefig(paths[caption], dpi=150)
    return paths


def write_html(report: dict[str, Any], found: dict[str, Any], figures: dict[str, Path], path: Path) -> None:
    """Write one file that holds everything, scripts and images too: nothing is loaded when it is opened."""
    parts = ["<h1>Flatness of the loss</h1>", f"<p>Task {html.escape(report['task'])}.</p>", _table(found["models"])]
    if found["comparison"]:
        parts.append(_differences(found["comparison"]))
    parts.append(f"<p class=note>{html.escape(NORMAL)}</p>")
    squares = {name: each.square for name, each in found["models"].items() if each.square}
    if squares:
        parts.append("<h2>The loss around the weights</h2><p>Drag to turn, scroll to zoom; choose the checkpoint.</p>")
        parts.append(surface(squares).to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False}))
    for caption, file in figures.items():
        data = base64.b64encode(file.read_bytes()).decode()
        text = html.escape(caption)
        parts.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
        )
    parts.append(f"<p class=note>{html.escape(_how(found['models'], report['environment']))}</p>")
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Flatness</title><style>{STYLE}</style>'
    path.write_text(f"{page}<body>{''.join(parts)}</body></html>\n", encoding="utf-8")


def surface(squares: dict[str, Any]) -> go.Figure:
    """Return a surface per checkpoint, one of them shown, with buttons to switch and one scale of heights."""
    heights = sorted(value for square in squares.values() for row in square.losses for value in row)
    low, high = heights[0], heights[int(0.9 * (len(heights) - 1))]
    figure = go.Figure()
    for i, (name, square) in enumerate(squares.items()):
        clipped = [[min(value, high) for value in row] for row in square.losses]
        figure.add_surface(
            x=square.x, y=square.y, z=clipped, cmin=low, cmax=high, colorscale="Viridis", name=name, visible=i == 0,
            colorbar={"title": "loss"}, hovertemplate="%{x:.2f}, %{y:.2f}: loss %{z:.4g}",
        )  # fmt: skip
    buttons = [
        {"label": name, "method": "update", "args": [{"visible": [other == name for other in squares]}]}
        for name in squares
    ]
    axes = {f"{axis}axis": {"title": title} for axis, title in zip("xy", ("direction 1", "direction 2"), strict=True)}
    figure.update_layout(
        scene={
            "camera": {"eye": {"x": 1.5, "y": 1.5, "z": 0.9}},
            **axes,
            "zaxis": {"title": "loss", "range": [low, high]},
        },
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "y": 1.1, "xanchor": "left"}
        ],
        height=560,
        margin={"l": 0, "r": 0, "t": 60, "b": 0},
    )
    return figure


def _table(models: dict[str, Any]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in models)
    rows = []
    for label, key in COLUMNS.items():
        values = [cell(each.report, key) for each in models.values()]
        if any(values):
            rows.append(f"<tr><td>{html.escape(label)}</td>" + "".join(f"<td>{v}</td>" for v in values) + "</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _differences(comparison: Any) -> str:
    others = [name for name in next(iter(comparison.values.values())) if name != comparison.baseline]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in others)
    rows = [
        f"<tr><td>{html.escape(measure)}</td>"
        + "".join(f"<td>{interval(found[name])}</td>" for name in others)
        + "</tr>"
        for measure, found in comparison.differences.items()
    ]
    return (
        f"<h2>Against {html.escape(comparison.baseline)}</h2><p>Mean difference over {len(comparison.folds)} folds "
        "of the examples and its 95 % interval. It covers the choice of examples, not that of training runs.</p>"
        f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    )


def _how(models: dict[str, Any], environment: dict[str, Any]) -> str:
    settings = next(iter(models.values())).report["settings"]
    texts = [f"{key} {value}" for key, value in {**settings, **environment}.items()]
    return "; ".join(texts) + "."
