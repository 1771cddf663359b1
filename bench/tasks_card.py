"""The card of weights that ``tasks.py`` trained, tested and shipped: ``docs/models/NAME.md``.

Figures come from the runs, everything else from ``task_cards.yaml``; ``task_card.md`` is the text
around them.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from model_card import (
    NO_OXIDATION,
    USED_OXIDATION,
    by_element,
    by_range,
    by_similarity,
    by_size,
    by_zero,
    elements_of,
    largest,
    markdown,
)
from predictions import Predictions
from tasks_list import RANDOM, Task

from sitenet.data.prepared import load_dataset
from sitenet.model.checkpoint import load, read_metadata
from sitenet.system.files import write_text
from sitenet.system.model_files import shipped_weights
from sitenet.training.leaderboard import ANCHORS, SOURCE
from sitenet.training.matbench_tasks import official_rows

if TYPE_CHECKING:
    from tasks_runs import Runs

HERE = Path(__file__).resolve().parent
CARDS = HERE.parent / "docs" / "models"
TAGS = ["materials-science", "crystal-structure", "site-net", "pytorch"]
METAL = "matbench_mp_is_metal"


def write_card(runs: Runs, name: str, folder: Path = CARDS) -> Path:
    """Write the card of weights that ship.

    Raises:
        ValueError: No weights of this name ship, or other ones than those of the runs.
    """
    shipped = shipped_weights().get(name)
    if shipped is None:
        raise ValueError(f"no weights {name} ship: put them there with `tasks.py ship` first")
    tested = runs.result(name, "tested")
    if read_metadata(shipped)["metadata"].get("tested") != tested:
        raise ValueError(f"{shipped} was not shipped from the runs in {runs.folder}")
    facts = yaml.safe_load((HERE / "task_cards.yaml").read_text(encoding="utf-8"))
    if name not in facts:
        raise ValueError(f"{HERE / 'task_cards.yaml'} holds no facts of {name}")
    path = folder / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, card(runs, runs.tasks[name], facts[name], shipped))
    return path


def card(runs: Runs, task: Task, facts: Mapping[str, Any], shipped: Path) -> str:
    """Compose the page as Markdown.

    Args:
        runs: Holds the results of the steps tested and rival.
        task: The property.
        facts: Its entry of ``task_cards.yaml``.
        shipped: The file of its weights.
    """
    tested = runs.result(task.name, "tested")
    run = runs.folder / task.name / "tested" / tested["start"]
    header, model = read_metadata(shipped), load(shipped)
    p = Predictions.read(run / "predictions.csv", task.target)
    data = load_dataset(runs.folder / task.name / "dataset.parquet")
    place = {name: k for k, name in enumerate(data.ids)}
    crystals = [data.crystals[place[i]] for i in p.ids]
    least = max(5, len(crystals) // 200)
    assert model.calibration is not None and model.calibration.index is not None
    members = header["members"]
    text = string.Template((HERE / "task_card.md").read_text(encoding="utf-8"))
    return text.substitute(
        front_matter=front_matter(task, facts, tested["scores"]["test"][task.target]),
        name=task.name,
        property=facts["property"],
        in_unit=f" ({task.unit})" if task.unit else "",
        members="Site-Net" if members == 1 else f"ensemble of {members} Site-Nets",
        config=task.settings["config"] if isinstance(task.settings["config"], str) else "own",
        parameters=f"{sum(x.numel() for x in model.parameters()):,}",
        format=header["format"],
        version=header["sitenet"],
        train=f"{tested['rows']['train']:,}",
        valid=f"{tested['rows']['valid']:,}",
        test=f"{len(p.ids):,}",
        what="probabilities" if task.is_class else "intervals",
        scores="\n".join(f"| {title} | {cell} |" for title, cell in _scores(task, tested)),
        shipped_train=f"{header['metadata']['crystals']['train']:,}",
        shipped_error=_shipped_error(task, tested, header["metadata"]),
        index=f"{len(model.calibration.index):,}",
        licence=facts["licence"],
        not_for="\n".join(f"- {line}" for line in facts["not_for"]),
        oxidation=USED_OXIDATION if header["uses_oxidation"] else NO_OXIDATION,
        data=facts["data"].strip(),
        protocol="\n\n".join(
            [
                _protocol(task, tested, runs, header["config"]["training"]["epochs"]),
                *([facts["notes"].strip()] if "notes" in facts else []),
            ]
        ),
        options=_options(task, tested, runs),
        rivals=markdown(*_rivals(task, tested, runs.result(task.name, "rival"))),
        rival_text=_rival_text(task, tested),
        more=(_by_probability(p) if task.is_class else _by_value(task, p, run))
        + (f"\n{facts['more']}" if "more" in facts else ""),
        by_similarity=by_similarity(p),
        by_size=by_size(p, np.array([len(c) for c in crystals])),
        least=least,
        by_element=by_element(p, elements_of(crystals), least),
        largest=largest(p, [c.reduced_formula for c in crystals], task.unit),
    )


def _options(task: Task, tested: Mapping[str, Any], runs: Runs) -> str:
    """The options of the command that trains."""
    starts = sorted(set(task.starts) - {RANDOM}, key=list(runs.tasks).index)
    given = "".join(
        f" \\\n    --start {name}=FILE --start-table {name}={table}"
        for name, (table, _) in tested["start_tables"].items()
    )
    return f"--only {' '.join([*starts, task.name])}{given}"


def front_matter(task: Task, facts: Mapping[str, Any], scores: Mapping[str, float]) -> str:
    """Format the metadata that model hubs read from the top of a card, as YAML without its marks.

    Args:
        task: The property.
        facts: Its entry of ``task_cards.yaml``.
        scores: Of the tested model on the test crystals.
    """
    names = ("roc_auc", "log_loss") if task.is_class else ("mae", "rmse", "r2")
    kind = "classification" if task.is_class else "regression"
    data = f"{task.matbench} v0.1" if task.matbench else task.table.removesuffix(".parquet")
    result = {
        "task": {"type": f"tabular-{kind}", "name": facts["property"]},
        "dataset": {
            "type": task.matbench or data,
            "name": f"{data}, fold {task.tested_fold}",
            "split": "test",
        },
        "metrics": [{"type": x, "name": x, "value": float(short(scores[x]))} for x in names],
    }
    content = {
        "license": "mit",
        "library_name": "sitenet",
        "pipeline_tag": "graph-ml",
        "tags": [*TAGS, *facts["tags"]],
        "metrics": list(names),
        "model-index": [{"name": task.name, "results": [result]}],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).strip()


def short(x: float) -> str:
    """A number with three decimals, or three digits where it is small."""
    return f"{x:.3f}" if x == 0 or abs(x) >= 0.1 else f"{x:.3g}"


def _with_unit(x: float, task: Task) -> str:
    return f"{x:.3f} {task.unit}".strip()


def _scores(task: Task, tested: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows on the errors of the tested model: title and text."""
    scores, unknown = tested["scores"]["test"][task.target], tested["unknown"]
    rows = []
    if task.is_class:
        labels = f"of labels {scores['roc_auc_of_labels']:.3f}; chance: 0.5"
        rows.append(("area under the ROC curve", f"**{scores['roc_auc']:.3f}**, {labels}"))
        error = f"{short(scores['log_loss'])}, {short(scores['calibration_error'])}"
        rows.append(("log loss, calibration error", error))
        if one := tested["probabilities"].get(task.target):
            rows.append(("calibration of the probabilities", _calibration(one)))
    else:
        mae, median = _with_unit(scores["mae"], task), f"the median: {scores['mae_of_median']:.3f}"
        text = f"**{mae}**; predicting the mean everywhere: {scores['mae_of_mean']:.3f}, {median}"
        rows.append(("mean absolute error", text))
        if task.log:
            rows.append(("error of the decimal logarithm", f"**{scores['mae_log10']:.4f}**"))
        rmse = f"{_with_unit(scores['rmse'], task)}, {scores['r2']:.3f}"
        rows.append(("root mean square error, R²", rmse))
        if "coverage" in scores:
            width, covered = _with_unit(scores["interval"], task), f"{scores['coverage']:.1%}"
            text = f"±{width} on average at 90 %, which covers {covered} of the test crystals"
            rows.append(("interval", text))
    if tested["chain"]:
        rows.append(("on formulas new to the starts", _unknown(task, unknown)))
    return rows


def _calibration(one: Mapping[str, Any]) -> str:
    """What the calibration of the probabilities did (``sitenet.training.platt``)."""
    before, after = one["before"], one["after"]
    text = (
        f"cross-validated on validation: log loss {before['log_loss']:.4f} before and "
        f"{after['log_loss']:.4f} after, calibration error {before['calibration_error']:.4f} and "
        f"{after['calibration_error']:.4f}"
    )
    return text if (one["slope"], one["offset"]) != (1, 0) else f"{text}; left as they were"


def _unknown(task: Task, scores: Mapping[str, float]) -> str:
    count = f"{scores['crystals']:,} test crystals"
    if not scores["crystals"]:
        return count
    if task.is_class:
        return f"{count}: area under the ROC curve {scores['roc_auc']:.3f}"
    log = f" ({scores['mae_log10']:.4f} of the logarithm)" if task.log else ""
    covered = f", intervals hold {scores['coverage']:.1%}" if "coverage" in scores else ""
    return f"{count}: {_with_unit(scores['mae'], task)}{log}{covered}"


def _shipped_error(task: Task, tested: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    measure, title = ("log_loss", "log loss") if task.is_class else ("mae", "mean absolute error")
    now, then = (facts["scores"]["valid"][task.target][measure] for facts in (after, tested))
    unit = "" if task.is_class else f" {task.unit}".rstrip()
    return f"their {title} is {now:.3f}{unit} (tested model: {then:.3f}{unit})"


def _protocol(task: Task, tested: Mapping[str, Any], runs: Runs, shipped_epochs: int) -> str:
    """How the models were trained and tested, in paragraphs."""
    folds = "those of matbench_mp_gap" if task.fold != "matbench_fold" else "Matbench's own"
    if task.matbench == METAL:
        folds = "those of matbench_mp_gap, not the task's own"
    lines = [
        f"The folds are {folds}. Fold {task.tested_fold} is the test set. The tested model was "
        f"trained on all other crystals at hand, less a random {task.settings['valid']:.0%} for "
        "validation; fold 0 is not at hand. The validation crystals chose the start and the epoch; "
        "the test crystals chose nothing."
    ]
    errors = ", ".join(f"{k} {v:.4g}" for k, v in tested["valid_errors"].items())
    measure = {"mae": "mean absolute error", "mae_log10": "error of the decimal logarithm"}
    title = measure.get(task.measure, "log loss")
    lines.append(f"Starts that were tried, with their {title} on validation: {errors}.")
    if tested["chain"]:
        chain = ", which had started from ".join(tested["chain"])
        lines.append(
            f"The tested model started from {chain}. A start has learned another property, also of "
            "crystals in this test set; the error on crystals whose formula none of the starts has "
            "learned from is given apart."
        )
    for name, (table, rows) in tested["start_tables"].items():
        lines.append(
            f"The start {name} of the tested model was trained apart, on the {rows:,} rows of "
            f"`{table}`."
        )
    if task.without:
        lines.append(
            f"{tested['rows']['unseen']:,} crystals that other properties test on "
            f"({', '.join(task.without)}) were left out of the training."
        )
    epochs = tested["epochs"]
    other = f" for {shipped_epochs} epochs instead of {epochs}" if shipped_epochs != epochs else ""
    lines.append(
        f"The shipped weights were trained in the same way{other} on all folds at hand, with the "
        "same validation crystals, from the shipped weights of the same start, and are kept in "
        f"{task.settings.get('bits', 32)} bits. Unless it says so, every error on this page is "
        "that of the tested model."
    )
    return "\n\n".join(lines)


def _rivals(
    task: Task, tested: Mapping[str, Any], rival: Mapping[str, Any]
) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and rows of the table of other models."""
    scores = tested["scores"]["test"][task.target]
    own = scores["roc_auc_of_labels"] if task.is_class else scores[task.measure]
    unit = "log10" if task.in_log10 else task.unit
    title = (
        "area under the ROC curve of labels" if task.is_class else f"error ({unit})" * bool(unit)
    )
    rows: list[Sequence[str]] = [(task.name, f"{own:.4g}", f"fold {task.tested_fold}")]
    if rival:
        error = rival["test"]["roc_auc" if task.is_class else "mae"]
        note = " of scores, not of labels" if task.is_class else ""
        rows.append(
            (f"ridge on the encodings of {rival['start']}", f"{error:.4g}{note}", "the same")
        )
        if "line" in rival:
            line = f"prediction of {rival['start']}, scaled by a line"
            rows.append((line, f"{rival['line']:.4g}", "the same"))
    for anchor in ANCHORS.get(task.matbench, ()):
        one = None if task.matbench == METAL else anchor.over([task.tested_fold])
        score, where = (
            (anchor.mean, "all five folds") if one is None else (one, f"fold {task.tested_fold}")
        )
        rows.append((anchor.model, f"{score:.4g}", where))
    return ("model", title, "tested on"), rows


def _rival_text(task: Task, tested: Mapping[str, Any]) -> str:
    if not task.matbench:
        return "Matbench has no such task."
    official = official_rows(task.matbench, task.tested_fold)
    rows = tested["rows"]["test"]
    return (
        f"The other models are those of [Matbench's leaderboard]({SOURCE}): they learned from four "
        f"folds, this one from fewer crystals. The fold has {official:,} official rows, of which "
        f"{max(official - rows, 0):,} are missing here, so that scores are of slightly different "
        "crystals."
    )


def _by_value(task: Task, p: Predictions, run: Path) -> str:
    """Sections on errors by true value, and on the probability of zero."""
    return (
        f"## Errors by true value\n\n{by_range(p, task.unit, None)}\n\nCoverage is the fraction of "
        "crystals whose true value lies within the 90 % interval. It is 90 % by design over\nall "
        "crystals and in each range of predicted values, not within each line.\n"
        + by_zero(run, task.name)
    )


def _by_probability(p: Predictions) -> str:
    """Section on how often a probability is right."""
    rows = []
    place = np.minimum((p.predicted * 10).astype(int), 9)
    for k in range(10):
        inside = place == k
        if inside.any():
            shares = f"{p.predicted[inside].mean():.3f}", f"{p.truth[inside].mean():.3f}"
            rows.append((f"{k / 10:.1f} to {(k + 1) / 10:.1f}", f"{inside.sum():,}", *shares))
    table = markdown(("probability", "crystals", "mean", "share of class 1"), rows)
    return f"## Probabilities\n\nOn the test crystals:\n\n{table}\n"
