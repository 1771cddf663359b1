"""Plots of predictions, training and attention as image files; needs matplotlib.

Figures are made without pyplot, so nothing here touches its state or needs a display. A file's
suffix names its format: .png, .pdf, .svg.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 2000  # crystals from which a parity plot counts instead of drawing each
BLUE, ORANGE, GREY, FAINT = "#2563a8", "#d9661f", "#5b6470", "#d9dde2"


def parity(
    truth: ArrayLike,
    predicted: ArrayLike,
    path: str | Path,
    *,
    name: str = "",
    unit: str = "",
    title: str = "",
) -> None:
    """Plot predicted against true values, with the mean absolute error, R2 and their number.

    Args:
        truth: (crystals,) true values; crystals where either value is not finite are left out.
        predicted: (crystals,).
        path: the file to write.
        name: of the property, for the axes.
        unit: of both.
        title: above the plot.

    Raises:
        ValueError: the two have different lengths, or there is nothing to plot.

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
        _count(figure, axes, x, y, limits)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel(_label(f"true {name}", unit))
    axes.set_ylabel(_label(f"predicted {name}", unit))
    if title:
        axes.set_title(title)
    behind = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 3}
    scores = "\n".join(_scores(x, y, unit))
    axes.text(0.04, 0.96, scores, transform=axes.transAxes, va="top", bbox=behind, zorder=4)
    _write(figure, path)


def _count(figure: Figure, axes: Axes, x: np.ndarray, y: np.ndarray, limits: tuple) -> None:
    """Count crystals in 100 x 100 bins, colours logarithmic from 1 to 1000 as published."""
    from matplotlib.colors import LogNorm

    count, edges, _ = np.histogram2d(x, y, bins=100, range=(limits, limits))
    image = axes.pcolormesh(
        edges, edges, np.ma.masked_equal(count.T, 0), norm=LogNorm(1, 1000), rasterized=True
    )
    figure.colorbar(image, ax=axes, label="crystals", shrink=0.8, extend="max").outline.set_lw(0)


def _scores(x: np.ndarray, y: np.ndarray, unit: str) -> list[str]:
    crystals = f"{len(x):,} crystal{'s' if len(x) > 1 else ''}"
    lines = [f"MAE {np.abs(y - x).mean():.3g} {unit}".rstrip(), crystals]
    spread = ((x - x.mean()) ** 2).sum()
    if spread > 0:
        lines.insert(1, f"R² {1 - ((y - x) ** 2).sum() / spread:.3f}")
    return lines


def learning_curve(
    history: Sequence[Mapping[str, Any]], path: str | Path, *, unit: str = "", title: str = ""
) -> None:
    """Plot the mean absolute errors of training and validation, and the learning rate, by epoch.

    Args:
        history: one mapping an epoch, as the lines of ``metrics.jsonl``: ``epoch``, ``train_mae``,
            ``valid_mae``, ``learning_rate``; values may be None or absent.
        path: the file to write.
        unit: of the errors.
        title: above the plot.

    Raises:
        ValueError: no epoch has an error.
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
    style = {"linewidth": 1.4, "marker": marker, "markersize": 3}
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
    upper.set_ylabel(_label("mean absolute error", unit))
    upper.legend(frameon=False)
    if title:
        upper.set_title(title)
    lower.plot(epoch, rate, color=GREY, linewidth=1.2, marker=marker, markersize=2)
    lower.set(ylabel="learning rate", xlabel="epoch")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    lower.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _write(figure, path)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.set_ylim(values.min() / 1.15, values.max() * 1.15)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


# ---------------------------------------------------------------------------------------------
# What all plots share


def _figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'sitenet[plot]'") from None
    return Figure(figsize=(width, height), dpi=200, layout="constrained")


def _panel(axes: Axes) -> Axes:
    """Axes with two thin spines and a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelsize=9)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    return axes


def _label(name: str, unit: str) -> str:
    return f"{name.strip()} ({unit})" if unit else name.strip()


def _write(figure: Figure, path: str | Path) -> None:
    with new_file(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:] or "png")


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it once the block has written it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
