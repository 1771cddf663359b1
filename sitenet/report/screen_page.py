"""A report on a screening: which crystals probably meet the condition, and how far to trust it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sitenet.inference.screen import SHARE, Screening
from sitenet.report.html_page import Page
from sitenet.report.packages import plotly
from sitenet.report.plots import BLUE, FAINT, GREY

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from sitenet.inference.conditions import Range

SHOWN = 40  # crystals in the figure of intervals
TABLE_ROWS = 200  # rows of the table at most


def screen_report(screening: Screening, path: str | Path) -> None:
    """Write a report on a screening.

    Args:
        screening: What ``sitenet.screen`` returned.
        path: HTML file to write.

    Raises:
        ImportError: plotly is not installed.
    """
    plotly("graph_objects")
    probabilities = screening.probabilities
    count, first = len(screening.rows), screening.first_with()
    page = Page(screening.where, f"{count:,} crystals ranked by the probability to meet it")
    page.cards(
        {
            "expected to meet the condition": f"{probabilities.sum():.3g}",
            f"crystals that hold {SHARE:.0%} of these": f"{first:,}",
            "highest probability": f"{probabilities.max():.0%}" if count else "",
            "left out": f"{len(screening.left_out):,}",
        }
    )
    if count:
        page.section(
            "Probabilities",
            "Probability of each crystal in the order of the ranking, and how many of the crystals "
            "up to there are expected to meet the condition.",
        )
        page.figure(_ranking(probabilities))
        for condition in screening.ranges:
            _add_intervals(page, screening, condition)
    page.section(
        "Ranking",
        "Probabilities come from the errors on validation crystals with similar predictions. They "
        "hold for crystals like those of the training set (like_training).",
    )
    shown = screening.rows[:TABLE_ROWS]
    columns = {name: _column([row[k] for row in shown]) for k, name in enumerate(screening.header)}
    caption = f"The first {TABLE_ROWS} of {count:,}" if count > TABLE_ROWS else ""
    page.table({"rank": np.arange(1, len(shown) + 1)} | columns, caption)
    page.write(path)


def _column(cells: list[Any]) -> Any:
    """Cells as numbers, if they are all numbers or unknown."""
    if all(cell is None or isinstance(cell, float) for cell in cells):
        return np.array([np.nan if cell is None else cell for cell in cells])
    return ["" if cell is None else cell for cell in cells]


def _ranking(probabilities: np.ndarray) -> Figure:
    """Probability against rank, and the expected number of hits up to it."""
    go = plotly("graph_objects")
    rank = np.arange(1, len(probabilities) + 1)
    mode = "lines+markers" if len(rank) <= SHOWN else "lines"
    figure = go.Figure()
    figure.add_scatter(x=rank, y=probabilities, mode=mode, name="probability", line_color=BLUE)
    figure.add_scatter(
        x=rank,
        y=np.cumsum(probabilities),
        mode=mode,
        name="expected hits up to here",
        yaxis="y2",
        line={"color": GREY, "dash": "dot"},
    )
    figure.update_layout(
        height=380,
        margin={"l": 60, "r": 70, "t": 40, "b": 50},
        legend={"orientation": "h", "y": 1.12, "x": 0},
        xaxis_title="rank",
        yaxis={"title": "probability", "range": [0, 1.02]},
        yaxis2={
            "title": "expected hits",
            "overlaying": "y",
            "side": "right",
            "rangemode": "tozero",
        },
    )
    figure.update_layout(yaxis2_showgrid=False, yaxis2_tickmode="auto")
    return figure


def _add_intervals(page: Page, screening: Screening, condition: Range) -> None:
    """Add the predictions of the first crystals beside the range that is asked for."""
    target = screening.targets[condition.target]
    title = f"{target.name} of the first {min(SHOWN, len(screening.rows))}"
    page.section(
        title,
        f"Predictions with their {screening.coverage:.0%} intervals. The shaded range meets the "
        "condition.",
    )
    page.figure(_intervals(screening, condition))


def _intervals(screening: Screening, condition: Range) -> Figure:
    go = plotly("graph_objects")
    target = screening.targets[condition.target]
    count = min(SHOWN, len(screening.rows))

    def numbers(ending: str) -> np.ndarray:
        cells = screening.column(f"{target.name}_{ending}")[:count]
        return np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)

    value, low, high = numbers("predicted"), numbers("low"), numbers("high")
    names = [
        f"{k}. {escape(str(name))}" for k, name in enumerate(screening.column("id")[:count], 1)
    ]
    figure = go.Figure()
    figure.add_scatter(
        x=value,
        y=names,
        mode="markers",
        marker={"color": BLUE, "size": 8},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": high - value,
            "arrayminus": value - low,
            "color": GREY,
            "thickness": 1.2,
        },
    )
    ends = np.concatenate([value, low, high])
    ends = ends[np.isfinite(ends)]
    margin = 0.05 * max(float(np.ptp(ends)), 1e-6)
    left, right = ends.min() - margin, ends.max() + margin
    figure.add_vrect(
        x0=max(condition.low, left),
        x1=min(condition.high, right),
        fillcolor=FAINT,
        opacity=0.6,
        line_width=0,
        layer="below",
    )
    figure.update_layout(
        height=120 + 22 * count,
        margin={"l": 220, "r": 30, "t": 20, "b": 50},
        showlegend=False,
        xaxis={"title": f"{target.name}", "range": [left, right]},
        yaxis={"range": [count - 0.4, -0.6], "dtick": 1},
    )
    return figure
