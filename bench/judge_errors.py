"""Judge the intervals and the probability of zero of a model on its validation crystals.

    python bench/judge_errors.py mp-gap [--coverage 0.9] [--figure reliability.svg]

The model file keeps its outputs for the validation crystals and their true values. These are cut
into five parts, each of which is judged by a calibration on the four others, several times. Before:
one quantile for all crystals, residuals in units of the members' spread plus its mean. Now: as in
``sitenet/model/errors.py``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import sitenet
from sitenet.inference.metrics import class_scores
from sitenet.model.errors import Errors, Outputs

FOLDS, REPEATS = 5, 8
LEAST = 500  # crystals per bin of predicted values, as far as there are enough
EDGES = np.linspace(0, 1, 11)  # of probabilities


def folds(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to calibrate on, and rows to judge, so that each row is judged REPEATS times."""
    for seed in range(REPEATS):
        order = np.random.default_rng(seed).permutation(count)
        for k in range(FOLDS):
            yield np.setdiff1d(order, order[k::FOLDS]), order[k::FOLDS]


def earlier_width(errors: Errors, coverage: float, new: Outputs) -> np.ndarray:
    """Half widths of intervals with one quantile for all crystals, (crystals,)."""
    spread, of_new = errors.outputs.spread, new.spread
    scale, of_new = (
        (1.0, np.ones((len(new.values), 1)))
        if spread is None
        else (
            spread + spread.mean(0),
            of_new + spread.mean(0),
        )
    )
    residuals = np.sort((np.abs(errors.truth - errors.outputs.values) / scale)[:, 0])
    return residuals[int(np.ceil((len(residuals) + 1) * coverage)) - 1] * of_new[:, 0]


def held_out(errors: Errors, coverage: float) -> dict[str, np.ndarray]:
    """Means over repeats, (crystals,) each: whether intervals cover, before and now; their half
    widths; the probability of zero."""
    count = len(errors.truth)
    names = ("covered before", "covered now", "width before", "width now", "zero")
    sums = {name: np.zeros(count) for name in names}
    miss = np.abs(errors.outputs.values - errors.truth)[:, 0]
    for known, new in folds(count):
        part, outputs = Errors(errors.outputs.take(known), errors.truth[known]), errors.outputs
        outputs = outputs.take(new)
        widths = {
            "before": earlier_width(part, coverage, outputs),
            "now": part.half_width(coverage, outputs)[:, 0],
        }
        for name, width in widths.items():
            sums[f"width {name}"][new] += width
            sums[f"covered {name}"][new] += miss[new] <= width
        sums["zero"][new] += part.zero_probability(outputs)[:, 0]
    return {name: values / REPEATS for name, values in sums.items()}


def table_of_bins(errors: Errors, judged: dict[str, np.ndarray], unit: str) -> str:
    """Coverage and width by predicted value, in Markdown."""
    predicted, raw = errors.outputs.values[:, 0], errors.outputs.raw[:, 0]
    count = max(1, len(raw) // LEAST)
    lines = [
        "| predicted value | crystals | coverage before | coverage now | ± before | ± now |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    parts = [*np.array_split(np.argsort(raw, kind="stable"), count), np.arange(len(raw))]
    for k, rows in enumerate(parts):
        low, high = predicted[rows].min(), predicted[rows].max()
        name = "all" if k == count else f"{low:.2f} to {high:.2f} {unit}"
        cells = [f"{judged[f'covered {x}'][rows].mean():.1%}" for x in ("before", "now")]
        cells += [f"{judged[f'width {x}'][rows].mean():.3f}" for x in ("before", "now")]
        lines.append(f"| {name} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_zeros(errors: Errors, judged: dict[str, np.ndarray]) -> str:
    """Probability of zero beside the share of zeros, in Markdown."""
    zero, probability = errors.truth[:, 0] == 0, judged["zero"]
    lines = ["| probability of zero | crystals | mean | share of zeros |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for low, high in itertools.pairwise(EDGES):
        rows = (probability >= low) & ((probability < high) | (high == 1))
        if rows.any():
            mean, share = probability[rows].mean(), zero[rows].mean()
            lines.append(f"| {low:.1f} to {high:.1f} | {rows.sum()} | {mean:.3f} | {share:.3f} |")
    return "\n".join(lines)


def scores_of_zeros(errors: Errors, judged: dict[str, np.ndarray]) -> dict[str, float]:
    """ROC AUC and the like of the probability of zero."""
    zero, probability = (errors.truth[:, 0] == 0).astype(float), judged["zero"]
    return class_scores(zero, probability) | {"brier": float(((probability - zero) ** 2).mean())}


def reliability_diagram(errors: Errors, judged: dict[str, np.ndarray], path: Path) -> None:
    """Draw the share of zeros against the probability of zero."""
    from matplotlib.figure import Figure

    zero, probability = errors.truth[:, 0] == 0, judged["zero"]
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    which = np.clip(np.digitize(probability, EDGES) - 1, 0, 9)
    rows = [np.flatnonzero(which == k) for k in range(10)]
    means = np.array([[probability[r].mean(), zero[r].mean(), len(r)] for r in rows if len(r)])
    error = 2 * np.sqrt(means[:, 1] * (1 - means[:, 1]) / means[:, 2])
    above.plot([0, 1], [0, 1], color="0.75", linewidth=1)
    above.errorbar(means[:, 0], means[:, 1], error, fmt="o", color="#1f5a96", markersize=5)
    above.set(ylabel="share with a gap of zero", xlim=(0, 1), ylim=(-0.02, 1.02))
    below.hist(probability, EDGES, color="#1f5a96", edgecolor="white")
    below.set(xlabel="predicted probability of a gap of zero", ylabel="crystals")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="name of shipped weights, or a model file")
    parser.add_argument("--coverage", type=float, default=0.9, help="of the intervals")
    parser.add_argument("--figure", type=Path, help="reliability diagram to write")
    options = parser.parse_args()
    model = sitenet.load(options.model)
    if model.calibration is None or model.calibration.errors is None:
        raise SystemExit(f"{options.model} keeps no errors: run bench/calibrate_weights.py first")
    errors = model.calibration.errors
    judged = held_out(errors, options.coverage)
    print(table_of_bins(errors, judged, model.targets[0].learned_unit))
    if errors.has_zeros[0]:
        print(table_of_zeros(errors, judged))
        print(scores_of_zeros(errors, judged))
        if options.figure:
            reliability_diagram(errors, judged, options.figure)


if __name__ == "__main__":
    main()
