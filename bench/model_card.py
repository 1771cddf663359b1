"""Write the card of trained weights: what they were trained on, and where they are wrong.

    python bench/model_card.py RUN DATASET FACTS.yaml [--refit RUN] --out docs/models/NAME.md

RUN is the folder of ``sitenet train``; its test predictions are used, or its validation predictions
if it has no test set. DATASET is the file of ``sitenet prepare`` that it was trained on, and FACTS
(``bench/model_cards``) holds what neither of them records. If the shipped weights are a refit,
``--refit`` names the folder of that ``sitenet train --refit``, which must have the validation set
of RUN; errors by similarity to the training set are then those of the shipped weights on it.
``docs/model_card.md`` is the text around the figures.
"""

from __future__ import annotations

import argparse
import itertools
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import judge_errors
import numpy as np
import yaml
from predictions import Predictions

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.elements import SYMBOLS
from sitenet.data.prepared import load_dataset
from sitenet.inference.metrics import regression_scores
from sitenet.model.checkpoint import load, read_metadata
from sitenet.system.files import write_text

TEMPLATE = Path(__file__).resolve().parents[1] / "docs" / "model_card.md"
SHOWN = 10  # elements, and largest errors, in a table
SIZES = (10, 20, 50, 100)  # sites of a cell
SPLITS = {"test": "test", "valid": "validation"}
METRICS = {"mae": "mean absolute error", "rmse": "root mean square error", "r2": "R²"}
OF_TESTED = "The {split} crystals of the tables above:"
OF_SHIPPED = (
    "The validation crystals, predicted by the shipped weights. They also set the thresholds, by "
    "which about 2 % of them\nare `no`:"
)
ZERO = """
## Zero or not

The column that ends in `_zero_probability` is the probability that the property is exactly zero.
On the {crystals} validation crystals ({zeros} are zero), each judged by a calibration on the other
crystals, its ROC AUC is {auc} and its Brier score {brier} (`bench/judge_errors.py`).
[Uncertainty](../uncertainty.md#metal-or-not) explains it.
{image}
{table}
"""
NO_OXIDATION = (
    "Oxidation states in a file do not change the prediction: no training structure had any."
)
USED_OXIDATION = "Oxidation states in a file change the prediction."


COUNTED = ("crystals", "MAE", "mean error", "coverage")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table with its numbers right-aligned."""
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_range(p: Predictions, unit: str, edges: Sequence[float] | None) -> str:
    """Tabulate errors by true value, between edges or quintiles; exact zeros, if they are many, get
    a line of their own."""
    if edges is None:
        edges = sorted(set(np.quantile(p.truth, np.linspace(0, 1, 6)).round(1)))[1:-1]
    zeros = p.truth == 0
    rows = []
    if zeros.mean() > 0.05:
        rows.append((f"exactly 0 {unit}", *p.cells(zeros)))
    else:
        zeros[:] = False
    ends = [-np.inf, *(e for e in edges if not (zeros.any() and e == 0)), np.inf]
    if zeros.any() and p.truth.min() == 0:
        ends[0] = 0
    for low, high in itertools.pairwise(ends):
        inside = ~zeros & (p.truth >= low) & (p.truth < high)
        if inside.any():
            name = f"{low:g} to {high:g} {unit}"
            if high == np.inf:
                name = f"{low:g} {unit} and above"
            if low == -np.inf:
                name = f"below {high:g} {unit}"
            rows.append((name, *p.cells(inside)))
    return markdown(("true value", *COUNTED), rows)


def elements_of(crystals: Sequence[Crystal]) -> dict[str, np.ndarray]:
    """Which crystals hold an element, (crystals,) bool each, by its symbol."""
    numbers = [set(c.numbers.tolist()) for c in crystals]
    return {
        SYMBOLS[z]: np.array([z in each for each in numbers]) for z in sorted(set().union(*numbers))
    }


def by_element(p: Predictions, holds: dict[str, np.ndarray], least: int) -> str:
    """Tabulate errors by element: the elements with the smallest and the largest errors."""
    counted = {z: p.cells(chosen) for z, chosen in holds.items() if chosen.sum() >= least}
    order = sorted(counted, key=lambda z: float(counted[z][1]))
    shown = order if len(order) <= 2 * SHOWN else [*order[:SHOWN], None, *order[-SHOWN:]]
    rows = [("…",) * 5 if z is None else (z, *counted[z]) for z in shown]
    return markdown(("element", *COUNTED), rows)


def by_size(p: Predictions, sites: np.ndarray) -> str:
    """Tabulate errors by sites of the primitive cell."""
    rows = []
    for low, high in zip((0, *SIZES), (*SIZES, np.inf), strict=True):
        inside = (sites > low) & (sites <= high)
        if inside.any():
            name = f"more than {low}" if high == np.inf else f"{low + 1} to {high}"
            rows.append((f"{name} sites", *p.cells(inside)))
    return markdown(("primitive cell", *COUNTED), rows)


def by_similarity(p: Predictions) -> str:
    """Tabulate errors by similarity to the training set."""
    rows = [
        (f"`like_training`: {name}", *p.cells(chosen))
        for name, chosen in (("yes", p.like_training), ("no", ~p.like_training))
    ]
    return markdown(("group", *COUNTED), rows)


def by_zero(run: Path, name: str) -> str:
    """Write the section on the probability of zero, if the model has one.

    Args:
        run: folder of the run whose weights ship.
        name: of the card.
    """
    calibration = load(run / "model.safetensors").calibration
    errors = None if calibration is None else calibration.errors
    if errors is None or not errors.has_zeros[0]:
        return ""
    judged = judge_errors.held_out(errors, 0.9)
    scores = judge_errors.scores_of_zeros(errors, judged)
    image = Path("images") / f"reliability-{name}.svg"
    is_drawn = (TEMPLATE.parent / image).is_file()
    return ZERO.format(
        image=f"\n![Reliability diagram](../{image.as_posix()})\n" if is_drawn else "",
        crystals=f"{len(errors.truth):,}",
        zeros=f"{(errors.truth == 0).mean():.1%}",
        auc=f"{scores['roc_auc']:.3f}",
        brier=f"{scores['brier']:.3f}",
        table=judge_errors.table_of_zeros(errors, judged),
    )


def _describe_index(run: Path) -> str:
    """Format the line on the index of the training crystals, if the model keeps one."""
    calibration = load(run / "model.safetensors").calibration
    if calibration is None or calibration.index is None:
        return ""
    return (
        f"\n| index of training crystals | {len(calibration.index):,}, for `--neighbours` and "
        "`learned_from`: ids, formulas and true values, under the licence of the data |"
    )


def largest(p: Predictions, formulas: Sequence[str], unit: str) -> str:
    """Tabulate the crystals with the largest errors."""
    order = np.argsort(-np.abs(p.predicted - p.truth), kind="stable")[:SHOWN]
    in_unit = f" ({unit})" if unit else ""
    header = ("id", "formula", f"true{in_unit}", f"predicted{in_unit}")
    return markdown(
        header,
        ((p.ids[i], formulas[i], f"{p.truth[i]:.3f}", f"{p.predicted[i]:.3f}") for i in order),
    )


def front_matter(facts: dict, split: str, unit: str, scores: Mapping[str, float]) -> str:
    """Format the metadata that model hubs read from the top of a card, as YAML without its marks.

    Args:
        facts: Of the card; needs ``name``, ``quantity``, ``source`` and ``tags``.
        split: Which crystals the scores are of.
        unit: Unit of the target.
        scores: Needs ``mae``, ``rmse`` and ``r2``.
    """
    metrics = [
        {"type": name, "name": f"{title} ({unit})" if name != "r2" else title, "value": value}
        for name, title in METRICS.items()
        for value in [round(float(scores[name]), 3)]
    ]
    result = {
        "task": {"type": "tabular-regression", "name": facts["quantity"]},
        "dataset": {**facts["source"], "split": split},
        "metrics": metrics,
    }
    content = {
        "license": "mit",
        "library_name": "sitenet",
        "pipeline_tag": "graph-ml",
        "tags": facts["tags"],
        "metrics": list(METRICS),
        "model-index": [{"name": facts["name"], "results": [result]}],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).strip()


def card(run: Path, dataset: Path, facts: dict, refit: Path | None = None) -> str:
    """Compose the page as Markdown.

    Args:
        run: folder of ``sitenet train``.
        dataset: dataset that it was trained on.
        facts: what these do not record: name, property, quantity, source, tags, licence, data,
            protocol, limits, commands; optionally edges, and the config's name.
        refit: folder of the refit whose weights ship; it has no test set.

    Raises:
        ValueError: the dataset lacks a predicted crystal, or the refit has another validation set
            than the run.
    """
    header = read_metadata(run / "model.safetensors")
    shipped = header if refit is None else read_metadata(refit / "model.safetensors")
    (target,) = header["targets"]  # a card is on one property
    unit = target["unit"]
    about = header["metadata"]
    p = Predictions.read(run / "predictions.csv", target["name"])
    model, data = load(run / "model.safetensors"), load_dataset(dataset)
    place = {name: k for k, name in enumerate(data.ids)}
    if unknown := [i for i in p.ids if i not in place]:
        raise ValueError(f"{dataset} lacks {unknown[0]}, which {run} predicts")
    crystals = [data.crystals[place[i]] for i in p.ids]
    holds = elements_of(crystals)
    least = max(5, len(crystals) // 200)
    scores = about["scores"][p.split][target["name"]] | regression_scores(p.truth, p.predicted)
    counts = about["crystals"]
    values = {k: v.strip() if isinstance(v, str) else v for k, v in facts.items()}
    values |= {
        "config": facts.get("config", "sphere"),
        "unit": unit,
        "what": target["name"].removesuffix("_" + unit.replace("/", "_per_")).replace("_", " "),
        "version": shipped["sitenet"],
        "format": shipped["format"],
        "oxidation": USED_OXIDATION if shipped["uses_oxidation"] else NO_OXIDATION,
        "parameters": f"{sum(x.numel() for x in model.parameters()):,}",
        **_describe_members(header.get("members", 1), about["epoch"]),
        "train": f"{counts['train']:,}",
        "valid": f"{counts['valid']:,}",
        "test": f"{len(p.ids):,}" if p.split == "test" else "0",
        "epochs": header["config"]["training"]["epochs"],
        "least": least,
        "coverage": f"{p.covered.mean():.1%}",
        "by_range": by_range(p, unit, facts.get("edges")),
        "by_element": by_element(p, holds, least),
        "by_size": by_size(p, np.array([len(c) for c in crystals])),
        "similarity": (OF_TESTED if refit is None else OF_SHIPPED).format(split=SPLITS[p.split]),
        "by_similarity": by_similarity(
            p if refit is None else Predictions.read(refit / "predictions.csv", target["name"])
        ),
        "by_zero": by_zero(run if refit is None else refit, facts["name"]),
        "index": _describe_index(run if refit is None else refit),
        "largest": largest(p, [c.reduced_formula for c in crystals], unit),
        "refit": "" if refit is None else _describe_refit(about, shipped, target["name"], unit),
    }
    values["front_matter"] = front_matter(facts, SPLITS[p.split], unit, scores)
    for name in ("mae", "rmse", "r2", "mae_of_mean", "mae_of_median", "interval"):
        values[name] = f"{scores[name]:.3f}"
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def _describe_members(count: int, epochs: int | list[int]) -> dict[str, str]:
    """Describe one model or an ensemble: values for the template."""
    if count == 1:
        return {
            "members": "Site-Net",
            "epoch": str(epochs),
            "on_average": "",
            "widths": "The interval has one\nwidth for all crystals.",
        }
    return {
        "members": f"ensemble of {count} Site-Nets",
        "epoch": ", ".join(map(str, epochs)),
        "on_average": " on average",
        "widths": "Intervals are wider where\nthe members disagree.",
    }


def _describe_refit(about: dict, shipped: dict, target: str, unit: str) -> str:
    """Format the line on the shipped weights, which were trained on the test crystals as well."""
    after = shipped["metadata"]
    counts = after["crystals"]
    errors = [facts["scores"]["valid"][target]["mae"] for facts in (about, after)]
    if counts["valid"] != about["crystals"]["valid"]:
        raise ValueError(
            f"the refit was validated on {counts['valid']} crystals, the tested run on "
            f"{about['crystals']['valid']}: expected the same validation set"
        )
    return (
        f"\n| the shipped weights | trained on {counts['train']:,} crystals, including the test "
        f"crystals; on the same {counts['valid']:,} validation crystals their mean absolute error "
        f"is {errors[1]:.3f} {unit} (tested model: {errors[0]:.3f} {unit}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of sitenet train")
    parser.add_argument(
        "dataset", type=Path, help="dataset that it was trained on, by sitenet prepare"
    )
    parser.add_argument("facts", type=Path, help="YAML file with what these do not record")
    parser.add_argument(
        "--refit", type=Path, help="folder of the refit whose weights ship [default: none]"
    )
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    facts = yaml.safe_load(options.facts.read_text(encoding="utf-8"))
    write_text(options.out, card(options.run, options.dataset, facts, options.refit))


if __name__ == "__main__":
    main()
