"""The interactive figures of reports; needs plotly. Texts from files are escaped, because plotly
takes them for markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sitenet.data.units import titled
from sitenet.inference.attention_histograms import weight_names, weight_titles
from sitenet.report.packages import plotly
from sitenet.report.plots import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from sitenet.inference.explanation import Explanation

COLOURS = (BLUE, ORANGE, "#2a8f5c", "#8b4bb3", "#c0392b", "#8a6d3b", "#d77fb4", "#17a2b8")
TIMES = "\N{MULTIPLICATION SIGN}"
MOST_PAIRS = 1500  # drawn per panel
MOST_CRYSTALS = 4000  # drawn per split
MOST_TICKS = 7  # on the logarithmic axis of a panel; more would overlap


def attention_figure(e: Explanation) -> Figure:
    """Weights against distance, one panel per block and head, coloured by elements."""
    blocks, heads = e.weights.shape[1:]
    figure = plotly("subplots").make_subplots(
        blocks,
        heads,
        shared_xaxes=True,
        shared_yaxes="all",
        subplot_titles=weight_titles(blocks, heads, e.members),
        horizontal_spacing=0.02,
        vertical_spacing=0.2 / (blocks + 1),
        x_title="distance (Å)",
        y_title="attention weight",
    )
    figure.update_annotations(font_size=12)
    figure.update_annotations(
        xshift=-60, selector={"text": "attention weight"}
    )  # left of the ticks
    columns = e.columns("pairs")
    step = -(-len(columns["site"]) // MOST_PAIRS)
    drawn = np.argsort(columns["distance"], kind="stable")[::step]
    columns = {name: column[drawn] for name, column in columns.items()}
    for group in _groups(columns):
        for k, name in enumerate(weight_names(blocks, heads)):
            figure.add_scatter(
                row=1 + k // heads,
                col=1 + k % heads,
                y=[float(f"{w:.4g}") for w in columns[name][group.members]],
                showlegend=k == 0,
                **_points(group, columns),
            )
    figure.update_yaxes(**_decades(e.weights[e.weights > 0]))
    longest = float(columns["distance"].max()) or 1.0
    figure.update_xaxes(range=[-0.04 * longest, 1.04 * longest])
    height, top, bottom = 180 + 240 * blocks, 100, 60
    # Above the titles of the panels, since labels of shared sites are long.
    above = 1 + 30 / (height - top - bottom)
    figure.update_layout(
        height=height,
        margin={"t": top, "r": 10, "b": bottom, "l": 90},
        legend={"orientation": "h", "y": above, "yanchor": "bottom"},
    )
    return figure


def _decades(weights: np.ndarray) -> dict[str, Any]:
    """A logarithmic axis that holds all weights, with a tick every few decades."""
    low, high = np.log10([weights.min(), weights.max()])
    step = max(1, int(np.ceil((high - low) / MOST_TICKS)))
    return {
        "type": "log",
        "range": [low - 0.15 * step, high + 0.15 * step],
        "exponentformat": "power",
        "dtick": step,
    }


class _Group(NamedTuple):
    """Pairs of the same elements."""

    name: str
    colour: str
    members: np.ndarray


def _points(group: _Group, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the points of a group have in common in all panels."""
    about = np.column_stack([columns[n] for n in ("site", "neighbour", "multiplicity")])
    is_self = group.name == "itself"
    return {
        "x": columns["distance"][group.members].round(4).tolist(),
        "customdata": about[group.members].tolist(),
        "name": group.name,
        "legendgroup": group.name,
        "mode": "markers",
        "marker": {
            "color": group.colour,
            "size": 7 if is_self else 5,
            "opacity": 0.65,
            "symbol": "diamond" if is_self else "circle",
        },
        "hovertemplate": "site %{customdata[0]} → site %{customdata[1]}<br>%{x:.3f} Å, "
        "%{customdata[2]} equal<br>weight %{y:.4g}<extra>" + group.name + "</extra>",
    }


def _groups(columns: Mapping[str, np.ndarray]) -> list[_Group]:
    """The most frequent pairs of elements, all others, and the self pairs."""
    names = np.array(
        [
            f"{i} → {j}"
            for i, j in zip(columns["element"], columns["neighbour_element"], strict=True)
        ],
        dtype=object,
    )
    names[columns["distance"] == 0] = "itself"
    common = [n for n, _ in Counter(names.tolist()).most_common() if n != "itself"]
    colours = dict(zip(common, COLOURS, strict=False))
    groups = [_Group(name, colour, names == name) for name, colour in colours.items()]
    groups.append(_Group("others", GREY, ~np.isin(names, ["itself", *colours])))
    groups.append(_Group("itself", "#1c2228", names == "itself"))
    return [group for group in groups if group.members.any()]


def element_figure(e: Explanation) -> Figure:
    """Shares of attention between elements, coloured by the ratio to even attention."""
    columns = e.columns("elements")
    elements = sorted(set(columns["element"]))
    neighbours = ["itself", *elements]
    colour: list[list[float | None]] = [[None] * len(neighbours) for _ in elements]
    text = [[""] * len(neighbours) for _ in elements]
    for i, j, share, relative in zip(
        *(columns[n] for n in ("element", "neighbour", "attention", "relative")), strict=True
    ):
        row, column = elements.index(i), neighbours.index(j)
        colour[row][column] = float(np.log2(np.clip(relative, 0.25, 4)))
        text[row][column] = f"{100 * share:.3g} % ({TIMES} {relative:.2f})"
    figure = plotly("graph_objects").Figure()
    figure.add_heatmap(
        x=neighbours,
        y=elements,
        z=colour,
        text=text,
        texttemplate="%{text}",
        hovertemplate="%{y} → %{x}: %{text}<extra></extra>",
        colorscale="RdBu",
        reversescale=True,
        zmin=-2,
        zmax=2,
        xgap=2,
        ygap=2,
        colorbar={
            "title": {"text": "ratio to even attention", "side": "right"},
            "tickvals": [-2, -1, 0, 1, 2],
            "ticktext": [f"{TIMES} {ratio}" for ratio in ("¼", "½", "1", "2", "4")],
            "thickness": 14,
        },
    )
    figure.update_xaxes(title="neighbour", side="top")
    figure.update_yaxes(
        title={"text": "site", "standoff": 10}, automargin=True, autorange="reversed"
    )
    figure.update_layout(
        height=190 + 45 * len(elements), margin={"t": 60, "r": 10, "b": 20, "l": 80}
    )
    return figure


def learning_figure(
    history: Sequence[Mapping[str, Any]], best: Sequence[int] = (), unit: str = ""
) -> Figure:
    """Errors of training and validation, and the learning rate, by epoch.

    Args:
        history: One mapping per epoch, as the lines of ``metrics.jsonl``.
        best: Epochs to mark: those whose weights were kept.
        unit: Unit of the errors.
    """
    figure = plotly("subplots").make_subplots(
        2, 1, shared_xaxes=True, row_heights=[0.78, 0.22], vertical_spacing=0.06
    )
    lines = (
        ("train_mae", "training", BLUE, 1),
        ("valid_mae", "validation", ORANGE, 1),
        ("learning_rate", "learning rate", GREY, 2),
    )
    for key, name, colour, row in lines:
        known = [line for line in history if line.get(key) is not None]
        figure.add_scatter(
            row=row,
            col=1,
            x=[line.get("epoch") for line in known],
            y=[line[key] for line in known],
            name=name,
            mode="lines+markers" if len(known) <= 30 else "lines",
            line={"color": colour, "width": 2},
            marker={"size": 5},
        )
    for epoch in best:
        figure.add_vline(epoch, row=1, col=1, line={"color": ORANGE, "width": 1, "dash": "dot"})
    figure.update_yaxes(title=titled("mean absolute error", unit), row=1, col=1)
    errors = [y for line in figure.data[:2] for y in line.y]
    if min(errors) > 0 and max(errors) > 4 * min(errors):
        ticks = "D2" if max(errors) < 300 * min(errors) else 1  # at 1, 2 and 5, or at decades
        figure.update_yaxes(type="log", dtick=ticks, tickformat=".3~g", row=1, col=1)
    figure.update_yaxes(
        title="learning rate", rangemode="tozero", nticks=3, exponentformat="e", row=2, col=1
    )
    figure.update_yaxes(automargin=True, title_standoff=10)
    figure.update_xaxes(title="epoch", row=2, col=1)
    figure.update_layout(
        height=440,
        hovermode="x unified",
        margin={"t": 20, "r": 10, "b": 50, "l": 80},
        legend={"orientation": "h", "y": 1.08},
    )
    return figure


def parity_figure(
    splits: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], name: str, unit: str
) -> Figure:
    """Predicted against true values.

    Args:
        splits: Name of a split -> ids, true and predicted values of its crystals, all finite.
        name: Name of the property.
        unit: Unit of the property.
    """
    figure = plotly("graph_objects").Figure()
    values = np.concatenate([v for _, *pair in splits.values() for v in pair])
    limits = [float(values.min()), float(values.max())]
    figure.add_scatter(
        x=limits,
        y=limits,
        mode="lines",
        line={"color": GREY, "width": 1, "dash": "dash"},
        hoverinfo="skip",
        showlegend=False,
    )
    # Training crystals would cover the others; a click in the legend shows them.
    held_out = [s for s in splits if not s.startswith("train")]
    for k, (split, (ids, truth, predicted)) in enumerate(splits.items()):
        step = -(-len(ids) // MOST_CRYSTALS)
        shown = f", every {step}th drawn" if step > 1 else ""
        figure.add_scatter(
            x=[float(f"{v:.5g}") for v in truth[::step]],
            y=[float(f"{v:.5g}") for v in predicted[::step]],
            text=[escape(i) for i in ids[::step]],
            name=f"{escape(split)} ({len(ids):,}{shown})",
            visible=True if split in held_out or not held_out else "legendonly",
            mode="markers",
            marker={"color": COLOURS[k % len(COLOURS)], "size": 5, "opacity": 0.5},
            hovertemplate="%{text}<br>true %{x:.4g}<br>predicted %{y:.4g}<extra></extra>",
        )
    name, unit = escape(name), escape(unit)
    margin = 0.03 * (limits[1] - limits[0]) or 1.0
    square = {"range": [limits[0] - margin, limits[1] + margin], "constrain": "domain"}
    figure.update_xaxes(title=titled(f"true {name}", unit), **square)
    figure.update_yaxes(title=titled(f"predicted {name}", unit), scaleanchor="x", **square)
    figure.update_layout(height=560, margin={"t": 20, "r": 10, "b": 60, "l": 80})
    return figure


def class_figure(
    splits: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], name: str, unit: str
) -> Figure:
    """Histogram of predicted probabilities by true class; arguments as in ``parity_figure``."""
    figure = plotly("graph_objects").Figure()
    edges = np.linspace(0, 1, 21)
    held_out = [s for s in splits if not s.startswith("train")]
    truth, predicted = (np.concatenate([splits[s][k] for s in held_out or splits]) for k in (1, 2))
    for value, colour in ((0, BLUE), (1, ORANGE)):
        count = np.histogram(predicted[truth == value], edges)[0]
        figure.add_bar(
            x=((edges[:-1] + edges[1:]) / 2).round(3).tolist(),
            y=count.tolist(),
            name=f"true class {value} ({int(count.sum()):,})",
            marker={"color": colour},
        )
    figure.update_xaxes(title=escape(f"probability of {name}"))
    figure.update_yaxes(title="crystals")
    figure.update_layout(height=380, margin={"t": 20, "r": 10, "b": 60, "l": 80})
    return figure
