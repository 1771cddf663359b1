"""What would change a prediction, as parts of a report: a map of substitutions, and strain."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sitenet.config import SITE_FEATURES
from sitenet.crystal.elements import NUMBERS, site_features
from sitenet.data.units import titled
from sitenet.report.html_page import Page
from sitenet.report.packages import plotly
from sitenet.report.plots import BLUE, GREY

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from sitenet.inference.changes import Change, Changes

REMOVED = "removed"
CELL = 46  # pixels of a cell of the map that holds its number
MOST_TEXTS = 24  # columns up to which cells hold numbers


def add_changes(page: Page, changes: Changes) -> None:
    """Add the effects of changes on the first target to a report."""
    target = changes.targets[0]
    page.section(
        f"What would change {target.name}",
        "Each cell is a crystal in which one site of the cell holds another element, or none. The "
        "number is the difference from the prediction for the crystal as it is. Crosses mark "
        "crystals unlike the training set, for which it means little.",
        "All other atoms stay where they are, so relaxation is left out. These are effects on the "
        "predicted value; the attention weights below say where the model looks, which is another "
        "question.",
    )
    if any(change.kind != "strain" for change in changes.each):
        page.figure(substitution_map(changes))
    if any(change.kind == "strain" for change in changes.each):
        page.section(
            "Strain",
            "The prediction if all lengths are scaled alike, with its interval. Open points are "
            "unlike the training set.",
        )
        page.figure(strain_curve(changes))


class _Map(NamedTuple):
    """Effects on the first target by site and element.

    Attributes:
        columns: symbols of elements, and REMOVED.
        rows: names of sites.
        effect: (rows, columns), NaN where nothing was tried.
        hover: what each cell shows when the mouse is on it.
        unlike: columns and rows of the cells that are unlike the training set.
    """

    columns: list[str]
    rows: list[str]
    effect: np.ndarray
    hover: list[list[str]]
    unlike: tuple[list[str], list[str]]


def _map_of(changes: Changes) -> _Map:
    of_sites = [change for change in changes.each if change.kind != "strain"]
    columns = _sorted({change.to for change in of_sites if change.to})
    if any(change.kind == "remove" for change in of_sites):
        columns.append(REMOVED)
    rows = list(dict.fromkeys(f"{change.element} {change.site}" for change in of_sites))
    effect = np.full((len(rows), len(columns)), np.nan)
    hover = [[""] * len(columns) for _ in rows]
    unlike: tuple[list[str], list[str]] = [], []
    for change in of_sites:
        place = f"{change.element} {change.site}", change.to or REMOVED
        row, column = rows.index(place[0]), columns.index(place[1])
        effect[row, column] = changes.effect(change)
        hover[row][column] = _hover(changes, change)
        if change.prediction.unlike:
            unlike[0].append(place[1])
            unlike[1].append(place[0])
    return _Map(columns, rows, effect, hover, unlike)


def substitution_map(changes: Changes) -> Figure:
    """A heat map of sites and elements, coloured by the change of the first target."""
    unit = escape(changes.targets[0].unit)
    columns, rows, effect, hover, unlike = _map_of(changes)
    largest = float(np.nanmax(abs(effect))) or 1.0
    has_texts = len(columns) <= MOST_TEXTS
    figure = plotly("graph_objects").Figure()
    figure.add_heatmap(
        x=columns,
        y=rows,
        z=[[None if np.isnan(v) else float(f"{v:.4g}") for v in row] for row in effect],
        text=[[_text(v) if has_texts else "" for v in row] for row in effect],
        texttemplate="%{text}",
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale="RdBu",
        reversescale=True,
        zmin=-largest,
        zmax=largest,
        xgap=2,
        ygap=2,
        colorbar={"title": {"text": titled("change", unit), "side": "right"}, "thickness": 14},
    )
    if unlike[0]:
        figure.add_scatter(
            x=unlike[0],
            y=unlike[1],
            mode="markers",
            marker={"symbol": "x-thin", "size": 30, "line": {"width": 1, "color": GREY}},
            opacity=0.45,
            name="unlike the training set",
            hoverinfo="skip",
            showlegend=True,
        )
    figure.update_xaxes(
        title="element on the site", side="top", type="category", tickangle=0, showgrid=False
    )
    title = {"text": "site", "standoff": 10}
    figure.update_yaxes(
        title=title, type="category", automargin=True, autorange="reversed", showgrid=False
    )
    figure.update_layout(
        height=150 + CELL * len(rows),
        margin={"t": 70, "r": 10, "b": 40, "l": 80},
        legend={"orientation": "h", "y": 0, "yanchor": "top"},
        plot_bgcolor="#f5f7f9",
    )
    return figure


def _sorted(symbols: set[str]) -> list[str]:
    """Symbols by column of the periodic table, then by row."""
    names = sorted(symbols, key=lambda symbol: NUMBERS[symbol])
    features = site_features([NUMBERS[name] for name in names], "mean")
    column = features[:, SITE_FEATURES.index("Column")]
    return [names[k] for k in np.argsort(column, kind="stable")]


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:+.2f}" if abs(value) < 10 else f"{value:+.3g}"


def _hover(changes: Changes, change: Change) -> str:
    """What a cell shows when the mouse is on it."""
    target, value = changes.targets[0], change.prediction.values[0]
    what = f"{change.to} instead of" if change.to else "without"
    lines = [
        f"{what} {change.element} {change.site}",
        f"{value:.4g} ({changes.effect(change):+.4g}) {escape(target.unit)}",
    ]
    if change.prediction.unlike:
        lines.append(f"unlike the training set: {change.prediction.unlike}")
    return "<br>".join(lines)


def strain_curve(changes: Changes) -> Figure:
    """The prediction of the first target over strain, with its interval."""
    target = changes.targets[0]
    points = [(c.strain, c.prediction) for c in changes.each if c.kind == "strain"]
    points = sorted([*points, (0.0, changes.unchanged)], key=lambda point: point[0])
    x = [100 * strain for strain, _ in points]
    figure = plotly("graph_objects").Figure()
    low, high = ([getattr(p, end)[0] for _, p in points] for end in ("low", "high"))
    if None not in low and None not in high:
        figure.add_scatter(x=x, y=high, mode="lines", line={"width": 0}, hoverinfo="skip")
        figure.add_scatter(
            x=x,
            y=low,
            mode="lines",
            line={"width": 0},
            fill="tonexty",
            fillcolor="rgba(45, 105, 175, 0.12)",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=x,
        y=[p.values[0] for _, p in points],
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        marker={
            "size": 9,
            "color": ["white" if p.unlike else BLUE for _, p in points],
            "line": {"color": BLUE, "width": 2},
        },
        customdata=[p.unlike or "" for _, p in points],
        hovertemplate="%{x:+.2g} %<br>%{y:.4g}<br>%{customdata}<extra></extra>",
    )
    figure.update_xaxes(title="strain of all lengths (%)")
    name = titled(escape(target.name), escape(target.unit))
    figure.update_yaxes(title=name, automargin=True)
    figure.update_layout(height=340, showlegend=False, margin={"t": 20, "r": 10, "b": 60, "l": 80})
    return figure
