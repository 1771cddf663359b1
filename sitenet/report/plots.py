"""Plots of predictions, training and attention; needs matplotlib.

Figures are drawn without pyplot, so they neither touch its state nor need a display. Each function
returns its figure, and writes it if a path is given; the suffix names the format: .png, .pdf, .svg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from sitenet.data.units import titled
from sitenet.inference.attention_histograms import (
    BINS_PER_ANGSTROM,
    WEIGHT_EDGES,
    distance_edges,
    weight_titles,
)
from sitenet.inference.metrics import regression_scores
from sitenet.report.packages import has_matplotlib, need_matplotlib
from sitenet.system.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sitenet.inference.evaluate import Predictions
    from sitenet.inference.explanation import Explained
    from sitenet.system.progress import Reporter

MANY = 2000  # crystals above which a parity plot shows counts, not points
BLUE, ORANGE, GREY, FAINT = "#2563a8", "#d9661f", "#5b6470", "#d9dde2"


def parity(
    truth: ArrayLike,
    predicted: ArrayLike,
    path: str | Path | None = None,
    *,
    name: str = "",
    unit: str = "",
    title: str = "",
) -> Figure:
    """Plot predicted against true values, with the mean absolute error, R2 and the number of
    crystals.

    Args:
        truth: (crystals,) true values; crystals where either value is not finite are left out.
        predicted: (crystals,) predicted values.
        path: File to write, if any.
        name: Name of the property, for the axes.
        unit: Unit of both.
        title: Title above the plot.

    Raises:
        ValueError: The two have different lengths, or there is nothing to plot.

    Source: figure 5 of the paper, for more than 2000 crystals.
    """
    x, y = np.asarray(truth, dtype=float), np.asarray(predicted, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"truth and predicted must both have shape (crystals,), got {x.shape} and {y.shape}"
        )
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x):
        raise ValueError("there is no crystal with a true and a predicted value to plot")
    figure = _figure(4.6 if len(x) <= MANY else 5.3, 4.6)
    axes = _panel(figure.add_subplot())
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.03 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GREY, linewidth=0.8, linestyle=(0, (5, 4)), zorder=3)
    if len(x) <= MANY:
        axes.scatter(x, y, s=14, color=BLUE, alpha=0.45, linewidths=0, zorder=2)
    else:
        _draw_counts(figure, axes, x, y, limits)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel(titled(f"true {name}", unit))
    axes.set_ylabel(titled(f"predicted {name}", unit))
    if title:
        axes.set_title(title)
    behind = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 3}
    scores = regression_scores(x, y)
    lines = [f"MAE {scores['mae']:.3g} {unit}".rstrip()]
    if np.isfinite(scores["r2"]):
        lines.append(f"R² {scores['r2']:.3f}")
    lines.append(f"{len(x):,} crystal{'s' if len(x) > 1 else ''}")
    axes.text(
        0.04, 0.96, "\n".join(lines), transform=axes.transAxes, va="top", bbox=behind, zorder=4
    )
    return _written(figure, path)


def _draw_counts(figure: Figure, axes: Axes, x: np.ndarray, y: np.ndarray, limits: tuple) -> None:
    """Draw the number of crystals in 100 x 100 bins, in the published colours from 1 to 1000."""
    from matplotlib.colors import LogNorm

    count, edges, _ = np.histogram2d(x, y, bins=100, range=(limits, limits))
    image = axes.pcolormesh(
        edges, edges, np.ma.masked_equal(count.T, 0), norm=LogNorm(1, 1000), rasterized=True
    )
    _colour_bar(figure, image, axes, "crystals", shrink=0.8, extend="max")


def learning_curve(
    history: Sequence[Mapping[str, Any]],
    path: str | Path | None = None,
    *,
    unit: str = "",
    title: str = "",
) -> Figure:
    """Plot the mean absolute errors of training and validation, and the learning rate, by epoch.

    Args:
        history: One mapping per epoch, as the lines of ``metrics.jsonl``: ``epoch``, ``train_mae``,
            ``valid_mae``, ``learning_rate``; values may be None or absent.
        path: File to write, if any.
        unit: Unit of the errors.
        title: Title above the plot.

    Raises:
        ValueError: No epoch has an error.
    """
    epoch, train, valid, rate = (
        np.array([np.nan if (x := row.get(key)) is None else x for row in history], dtype=float)
        for key in ("epoch", "train_mae", "valid_mae", "learning_rate")
    )
    errors = np.concatenate([train, valid])
    errors = errors[np.isfinite(errors)]
    if not len(errors):
        raise ValueError("there is no epoch with an error to plot")
    figure = _figure(5.6, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for axes in (_panel(upper), _panel(lower)):
        axes.margins(x=0.02)
    marker = "o" if len(history) <= 30 else None
    style: dict[str, Any] = {"linewidth": 1.4, "marker": marker, "markersize": 3}
    if (known := np.isfinite(train)).any():
        upper.plot(epoch[known], train[known], color=BLUE, label="training", **style)
    if (known := np.isfinite(valid)).any():
        upper.plot(epoch[known], valid[known], color=ORANGE, label="validation", **style)
        best = np.argmin(np.where(known, valid, np.inf))
        upper.plot(epoch[best], valid[best], "o", color=ORANGE, markersize=7, markerfacecolor="w")
        upper.annotate(
            f"{valid[best]:.3g}",
            (epoch[best], valid[best]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=ORANGE,
        )
    if errors.min() > 0 and errors.max() > 4 * errors.min():
        _log_scale(upper, errors)
    upper.set_ylabel(titled("mean absolute error", unit))
    upper.legend(frameon=False)
    if title:
        upper.set_title(title)
    lower.plot(epoch, rate, color=GREY, linewidth=1.2, marker=marker, markersize=2)
    lower.set(ylabel="learning rate", xlabel="epoch")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    lower.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return _written(figure, path)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2 and 5, or fewer on long axes."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.set_ylim(values.min() / 1.15, values.max() * 1.15)
    is_short = values.max() < 300 * values.min()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,), numticks=8))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def plot_attention(
    explanation: Explained,
    path: str | Path | None = None,
    *,
    title: str = "",
) -> Figure:
    """Plot attention weights against distance, one panel per block and head.

    Self pairs are in a column of their own on the left. Few pairs are drawn as points. Many are
    counted: the colours of a column show the share of its pairs per weight, and a line the mean
    weight.

    Args:
        explanation: What a model attends to, in one crystal or in many.
        path: File to write, if any.
        title: Title above the panels.

    Raises:
        ValueError: There are only self pairs.

    Source: figure 6 of the paper: columns with equal numbers of pairs, at most 10,000, and 500 bins
    of weight from 1e-6 to 1; logarithmic colours from 1e-4 to 1; up to 15 angstrom. Here a column
    is at least 1/64 angstrom wide, and few pairs have fewer columns and bins.
    """
    histogram = explanation.by_distance
    blocks, heads = histogram.self_attention.shape
    if not histogram.pairs.any():
        raise ValueError("there are no pairs but self pairs to plot")
    titles = iter(weight_titles(blocks, heads, explanation.members))
    few = max(np.count_nonzero(c) for c in histogram.counts.reshape(blocks * heads, -1)) <= MANY
    figure = _figure(1.0 + 2.7 * heads, 0.8 + 2.2 * blocks, wspace=0.01)
    panels = figure.subplots(
        blocks, 2 * heads, sharex="col", sharey=True, squeeze=False, width_ratios=[1, 14] * heads
    )
    for block, head in np.ndindex(blocks, heads):
        own, others = panels[block, 2 * head : 2 * head + 2]
        counts, self_counts = histogram.counts[block, head], histogram.self_counts[block, head]
        if few:
            _draw_points(own, others, counts, self_counts)
        else:
            image = _draw_shares(own, others, counts, self_counts, histogram.pairs)
            _draw_mean(others, histogram.attention[:, block, head], histogram.pairs)
        own.set(yscale="log", ylim=(1e-6, 1), xlim=(0, 1), xticks=[])
        for axes in (own, others):
            axes.minorticks_off()
        others.set_xlim(0, min(15, distance_edges()[np.flatnonzero(histogram.pairs)[-1] + 1] + 0.1))
        others.set_title(next(titles), fontsize=9)
        others.tick_params(left=False)
        if block == blocks - 1:
            own.set_xlabel("self", fontsize=8)
    if few:
        seen = np.flatnonzero(histogram.counts.any((0, 1, 2)) | histogram.self_counts.any((0, 1)))
        low, high = np.log10(WEIGHT_EDGES[[seen[0], seen[-1] + 1]])
        own.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
    else:
        _colour_bar(figure, image, panels, "share of the pairs at a distance", pad=0.01)
    figure.supxlabel("distance (Å)", fontsize=10)
    figure.supylabel("attention weight", fontsize=10)
    if title:
        figure.suptitle(title)
    return _written(figure, path)


def _draw_points(own: Axes, others: Axes, counts: np.ndarray, self_counts: np.ndarray) -> None:
    style: dict[str, Any] = {"s": 9, "color": BLUE, "alpha": 0.5, "linewidths": 0}
    x, y = np.sqrt(WEIGHT_EDGES[:-1] * WEIGHT_EDGES[1:]), np.convolve(distance_edges(), [0.5, 0.5])
    at = np.flatnonzero(self_counts)
    _panel(own).scatter(np.full(len(at), 0.5), x[at], **style)
    distance, weight = np.nonzero(counts)
    _panel(others).scatter(y[1:-1][distance], x[weight], **style)


def _draw_shares(
    own: Axes, others: Axes, counts: np.ndarray, self_counts: np.ndarray, pairs: np.ndarray
) -> Any:
    """Draw the share of each column's pairs per weight; return the image, for the colour bar."""
    from matplotlib.colors import LogNorm

    begin, end = _columns(pairs, min(10_000, pairs.sum() / 500))
    per_column = pairs.sum() / len(begin)
    bins = next((n for n in (500, 250, 100) if 5 * n <= per_column), 50)
    weights = WEIGHT_EDGES[:: 500 // bins]
    style: dict[str, Any] = {"norm": LogNorm(1e-4, 1), "rasterized": True}

    def shares(counts: np.ndarray) -> np.ndarray:
        counts = counts.reshape(len(counts), bins, -1).sum(2)
        return np.ma.masked_equal(counts / (counts.sum(1, keepdims=True) + 1e-7), 0).T

    _panel(own).pcolormesh([0, 1], weights, shares(self_counts[None]), **style)
    edges = np.unique(np.concatenate([begin, end]))
    columns = np.zeros((len(edges) - 1, counts.shape[1]))
    columns[np.searchsorted(edges, begin)] = np.add.reduceat(counts, begin)
    return _panel(others).pcolormesh(distance_edges()[edges], weights, shares(columns), **style)


def _draw_mean(axes: Axes, attention: np.ndarray, pairs: np.ndarray) -> None:
    begin, end = _columns(pairs, 60)
    mean = np.add.reduceat(attention, begin) / np.add.reduceat(pairs, begin)
    middle = distance_edges()[[begin, end]].mean(0)
    axes.plot(middle, mean, color=ORANGE, linewidth=1.2)


def _columns(pairs: np.ndarray, number: float) -> tuple[np.ndarray, np.ndarray]:
    """Group bins of distance into columns with equal numbers of pairs, as far as bins allow.

    Returns:
        The first bin of each column, and the bin after its last: the first of the next column,
        unless a gap of more than 0.1 angstrom lies between.
    """
    occupied = np.flatnonzero(pairs)
    before = np.cumsum(pairs[occupied]) - pairs[occupied]
    first = np.unique(before * max(number, 1) // pairs.sum(), return_index=True)[1]
    begin = occupied[first]
    end = occupied[np.append(first[1:], len(occupied)) - 1] + 1
    near = begin[1:] - end[:-1] <= 0.1 * BINS_PER_ANGSTROM
    end[:-1][near] = begin[1:][near]
    return begin, end


# ---------------------------------------------------------------------------------------------
# Style


def _figure(width: float, height: float, wspace: float = 0.02) -> Figure:
    """Create a figure; sizes in inches, the space between panels as a share of their width."""
    need_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(wspace=wspace)
    return Figure(figsize=(width, height), dpi=200, layout=layout)


def _panel(axes: Axes) -> Axes:
    """Give axes two thin spines and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelsize=9)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    return axes


def _colour_bar(figure: Figure, image: Any, axes: Any, name: str, **options: Any) -> None:
    figure.colorbar(image, ax=axes, label=name, **options).outline.set_linewidth(0)


def _written(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        with new_file(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:] or "png")
    return figure


def plot_predictions(
    predictions: Predictions,
    folder: Path,
    history: Sequence[Mapping[str, Any]],
    reporter: Reporter,
) -> list[Path]:
    """Write parity plots of the test crystals, or of the validation crystals if there is no test,
    and the learning curve if there is a history.

    Returns:
        The files written; none, with a line to the reporter, if matplotlib is missing.
    """
    if not has_matplotlib():
        reporter.say("no plots: they need matplotlib, pip install 'sitenet[plot]'")
        return []
    targets = predictions.targets
    written = []
    shown = next((s for s in ("test", "valid", "all") if s in predictions.split), None)
    chosen = np.array([s == shown for s in predictions.split], dtype=bool)
    for k, target in enumerate(targets):
        truth, values = predictions.truth[chosen, k], predictions.values[chosen, k]
        if target.kind != "value" or not np.isfinite(truth).any():
            continue
        ending = "" if len(targets) == 1 else f"_{_file_name(target.name)}"
        path = folder / f"parity{ending}.png"
        title = f"{shown} crystals"
        parity(truth, values, path, name=target.name, unit=target.unit, title=title)
        written.append(path)
    if len(history) > 1 and "train_mae" in history[0]:
        path = folder / "learning_curve.png"
        learning_curve(history, path, unit=targets[0].learned_unit)
        written.append(path)
    return written


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
