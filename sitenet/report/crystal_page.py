"""A report on one crystal: what a model predicts for it, and what it attends to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sitenet.data.units import titled
from sitenet.inference.attention_histograms import weight_titles
from sitenet.inference.changes import what_changes
from sitenet.inference.evidence import with_evidence
from sitenet.inference.explain import explain
from sitenet.inference.explanation import Explanation
from sitenet.inference.table import Prediction, predictions_of, structure_warnings
from sitenet.model.ensemble import Model
from sitenet.model.sitenet import Target
from sitenet.report.cell_view import cell_view
from sitenet.report.changes import add_changes
from sitenet.report.figures import attention_figure, element_figure
from sitenet.report.html_page import Page
from sitenet.report.packages import plotly

COVERAGE = 0.9  # of the intervals
NEIGHBOURS = 5  # training crystals that are shown
TABLE_ROWS = 50  # rows of a table at most


def crystal_report(
    model: Model, structure: Any, path: str | Path, substitute: bool = False, **options: Any
) -> Explanation:
    """Write a report on one crystal: its prediction, and what the model attends to.

    Args:
        model: A SiteNet or an Ensemble.
        structure: One structure, as in ``predict``.
        path: HTML file to write.
        substitute: Whether to add what would change the prediction, as ``what_changes`` does.
        options: Options of ``explain``.

    Returns:
        The explanation that the report shows.

    Raises:
        ImportError: plotly is not installed.
        ValueError: The structure cannot be used, or there are several.
    """
    plotly("graph_objects")  # if it is missing, say so before anything is computed
    e = explain(model, structure, **options)
    if not isinstance(e, Explanation):
        raise ValueError("a report is on one crystal, got several structures")
    sites, images = int(e.pairs.num_sites), int(e.pairs.images)
    around = f"{sites * images} sites of a supercell" if images else "all sites in a sphere"
    formula = e.crystal.reduced_formula
    in_cell = f"{sites} site{'s' * (sites != 1)} in the cell"
    page = Page(e.name, f"{formula}, {in_cell}, each attending to {around}")
    _add_prediction(page, model, e)
    page.section("In short", *e.summary().splitlines())
    if substitute:
        max_sites = options.get("max_sites")
        add_changes(page, what_changes(model, e.crystal, max_sites=max_sites, primitive=False))
    _add_figures(page, e)
    _add_tables(page, e, sites)
    page.write(path)
    return e


def _add_prediction(page: Page, model: Model, e: Explanation) -> None:
    """Add what the model predicts, how sure it is, and doubts about the structure."""
    (prediction,) = predictions_of(
        model,
        [e.name],
        [e.crystal.reduced_formula],
        e.predicted[None],
        e.encoding[None],
        e.pairs,
        [structure_warnings(e.crystal)],
        COVERAGE,
    )
    has_index = model.calibration is not None and model.calibration.index is not None
    (prediction,) = with_evidence(
        model, [prediction], e.encoding[None], [e.crystal], NEIGHBOURS if has_index else 0
    )
    cards: dict[str, str] = {}
    for k, target in enumerate(e.targets):
        cards |= _predicted(target, prediction, k)
    if prediction.unlike is not None:
        cards["like the training crystals"] = "no" if prediction.unlike else "yes"
    page.cards(cards)
    if prediction.learned_from:
        page.text(
            f"The model was trained on this crystal: {prediction.learned_from} has the same "
            "composition, symmetry and volume."
        )
    if prediction.unlike:
        page.text(f"Unlike the training crystals: {prediction.unlike}.")
    if prediction.warnings:
        page.text(f"Doubts about the structure: {prediction.warnings}.")
    if prediction.neighbours:
        _add_neighbours(page, e.targets, prediction)


def _add_neighbours(page: Page, targets: Sequence[Target], prediction: Prediction) -> None:
    """Add the nearest training crystals."""
    page.section(
        "Nearest training crystals",
        "The crystals of the training set that the model encodes nearest to this one, with their "
        "true values. A distance of 1 is that of two training crystals chosen at random.",
    )
    names, formulas, distances, values = zip(*prediction.neighbours, strict=True)
    columns: dict[str, Any] = {"id": names, "formula": formulas, "distance": np.array(distances)}
    for target, known in zip(targets, zip(*values, strict=True), strict=True):
        columns[f"true {target.name}"] = np.array(known)
    page.table(columns)


def _predicted(target: Target, prediction: Prediction, k: int) -> dict[str, str]:
    """A target's value and interval by name."""
    value, low, high = prediction.values[k], prediction.low[k], prediction.high[k]
    if target.kind == "class":
        return {f"probability of {target.name}": f"{value:.3f}"}
    name = titled(target.name, target.unit).removesuffix(f" ({target.unit})")
    cards = {name: f"{value:.4g} {target.unit}".strip()}
    if low is not None and high is not None:
        interval = f"{low:.3g} to {high:.3g} {target.unit}".strip()
        cards[f"{name}, {COVERAGE:.0%} interval"] = interval
    zero = prediction.zero[k] if prediction.zero else None
    if zero is not None:
        cards[f"probability that {name} is zero"] = f"{zero:.0%}"
    return cards


def _add_figures(page: Page, e: Explanation) -> None:
    page.section(
        "The cell, its sites coloured by attention",
        "Colours show the attention that a site receives from all sites of the cell, 1 on average. "
        "The menu shows a single block and head instead of their mean. Drag to turn the cell.",
    )
    received = e.received
    blocks, heads = received.shape[1:]
    titles = weight_titles(blocks, heads, e.members)
    entries = {"mean": received.mean((1, 2))}
    entries |= zip(titles, received.reshape(len(received), -1).T, strict=True)
    page.figure(cell_view(e.crystal, entries, "attention received"))
    page.section(
        "Attention against distance",
        "Each point is a site and a site that it attends to; several equal ones are one point, at "
        "the weight of each. The weights of a site add up to 1 in every block and head. Diamonds "
        "are sites that attend to themselves.",
    )
    page.figure(attention_figure(e))
    page.section(
        "Between elements",
        "The share of its attention that a site of one element pays to each kind of neighbour, and "
        "in brackets the ratio to even attention; means over blocks and heads.",
    )
    page.figure(element_figure(e))


def _add_tables(page: Page, e: Explanation, sites: int) -> None:
    page.section(
        "Most attended pairs",
        "Sorted by the weight of one pair of sites, averaged over blocks and heads; without self "
        "pairs.",
    )
    page.table(_most_attended(e))
    page.section("Sites", "The attention that a site receives, 1 on average, and pays to itself.")
    columns = e.columns("sites")
    shown = ["site", "element", "x", "y", "z", "received", "kept"]
    page.table(
        {name: columns[name][:TABLE_ROWS] for name in shown},
        f"The first {TABLE_ROWS} of {sites:,} sites" if sites > TABLE_ROWS else "",
    )
    page.section(
        "Long-range coefficient",
        "The largest product of distance and attention weight of any pair of sites, in angstrom: "
        "large if a distant site gets much attention.",
    )
    blocks, heads = e.long_range.shape
    titles = [title.removesuffix(", head 1") for title in weight_titles(blocks, 1, e.members)]
    page.table({"": titles} | {f"head {h + 1}": e.long_range[:, h] for h in range(heads)})


def _most_attended(e: Explanation) -> dict[str, Any]:
    """The pairs with the largest mean weight, as columns."""
    columns = e.columns("pairs")
    weights = e.weights.reshape(len(columns["site"]), -1)
    mean = np.where(columns["distance"] > 0, weights.mean(1), -1)
    top = np.argsort(-mean, kind="stable")[:TABLE_ROWS]
    top = top[mean[top] >= 0]
    blocks, heads = e.weights.shape[1:]
    titles = weight_titles(blocks, heads, e.members)
    return {
        "site": [f"{columns['element'][k]} {columns['site'][k]}" for k in top],
        "neighbour": [f"{columns['neighbour_element'][k]} {columns['neighbour'][k]}" for k in top],
        "distance (Å)": columns["distance"][top],
        "equal sites": columns["multiplicity"][top],
        "mean weight": mean[top],
        "largest weight": weights[top].max(1),
        "in": [titles[k] for k in weights[top].argmax(1)],
    }
