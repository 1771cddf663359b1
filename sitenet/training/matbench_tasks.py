"""Several tasks of Matbench, from a folder with their data: a file of results per task, and a page
with the table against the leaderboard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sitenet.config import DEFAULT_CONFIG, SiteNetConfig
from sitenet.data.readers import open_source
from sitenet.data.source import Source
from sitenet.system.distributed import is_first
from sitenet.system.files import writable_folder, write_text
from sitenet.system.progress import Reporter
from sitenet.training.leaderboard import ANCHORS, SOURCE
from sitenet.training.matbench import FOLDS, TASKS, Benchmark, matbench

ALL = "all"
PAGE = "results.md"
METAL, GAP = "matbench_mp_is_metal", "matbench_mp_gap"
ENDINGS = (".json.gz", ".parquet", ".pq", ".csv", ".csv.gz")
# Names that tables other than Matbench's own give to the targets.
COLUMNS = {
    "matbench_dielectric": "refractive_index",
    "matbench_jdft2d": "exfoliation_energy_meV_per_atom",
    "matbench_log_gvrh": "log10_shear_modulus_vrh_GPa",
    "matbench_log_kvrh": "log10_bulk_modulus_vrh_GPa",
    "matbench_mp_e_form": "e_form_eV_per_atom",
    "matbench_mp_gap": "band_gap_eV",
    "matbench_perovskites": "e_form_eV_per_cell",
    "matbench_phonons": "last_phdos_peak_per_cm",
}
OTHER_STEMS = {"matbench_log_gvrh": "matbench_log_kvrh_gvrh"}  # one table of both moduli

PAGE_TEXT = """# Matbench

Written by `sitenet matbench`, with the results of each task in `TASK/results.json`. Scores are mean
absolute errors in the unit of the task; for matbench_mp_is_metal, areas under the ROC curve of
labels, as on the leaderboard, and in brackets those of the probabilities.

{table}

"Missing" counts official rows of the tested folds that the data at hand lack: scores are then of
slightly different crystals. A structure that cannot be used is tested all the same, predicted as
the mean of the training crystals. Anchors are from [Matbench's leaderboard]({source}): over the
same folds, or over all five where it says so. Models there learned from four folds; where the data
lack a fold, those here learned from fewer crystals.
{notes}"""
HEADER = (
    "task",
    "score",
    "tested folds",
    "folds at hand",
    "tested rows",
    "missing",
    "predicted by the mean",
    "anchors",
)


@dataclass(frozen=True)
class TaskData:
    """Where the data of a task are.

    Attributes:
        task: Matbench's name.
        path: File.
        target: Column; None for the only one.
        of_gap: Whether the class is made from band gaps.
    """

    task: str
    path: Path
    target: str | None = None
    of_gap: bool = False

    def source(self) -> Source:
        """Open the crystals."""
        source = open_source(self.path, None if self.target is None else [self.target])
        if not self.of_gap:
            return source
        records = [
            replace(
                r, targets=tuple(math.nan if math.isnan(x) else float(x == 0) for x in r.targets)
            )
            for r in source
        ]
        return Source(source.path, records, ("is_metal",))


def find_tasks(folder: str | Path) -> dict[str, TaskData]:
    """Find the data of Matbench's tasks in a folder.

    A task's own file ``TASK.json.gz`` comes first, then the table with most rows whose name begins
    with the task's and that has its target. Without a file of its own, matbench_mp_is_metal is made
    from the band gaps: a metal has a gap of exactly 0.

    Returns:
        What there is, by task.

    Raises:
        NotADirectoryError: There is no such folder.
    """
    folder = Path(folder)
    files = [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(ENDINGS)]
    found: dict[str, TaskData] = {}
    for task in TASKS:
        own = folder / f"{task}.json.gz"
        if own.is_file():
            found[task] = TaskData(task, own)
        elif table := _largest(files, task):
            found[task] = table
    if METAL not in found and GAP in found:
        gap = found[GAP]
        found[METAL] = TaskData(METAL, gap.path, gap.target, of_gap=True)
    return found


def _largest(files: Sequence[Path], task: str) -> TaskData | None:
    """The table of a task with the most rows."""
    stems = [task, *([OTHER_STEMS[task]] if task in OTHER_STEMS else [])]
    sizes: dict[TaskData, int] = {}
    for path in files:
        stem = path.name.partition(".")[0]
        if any(stem == x or stem.startswith(f"{x}_") for x in stems):
            for target in (COLUMNS.get(task), None):
                data = TaskData(task, path, target)
                try:
                    source = data.source()
                except ValueError:  # no such column, or several
                    continue
                if len(source.targets) == 1:
                    sizes[data] = len(source)
                    break
    return max(sizes, key=lambda data: sizes[data], default=None)


def matbench_tasks(
    folder: str | Path,
    out: str | Path,
    config: str | Path | Mapping[str, Any] | SiteNetConfig = DEFAULT_CONFIG,
    *,
    tasks: str | Sequence[str] = ALL,
    folds: Sequence[int] | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> dict[str, Benchmark]:
    """Train and test a model on each fold of several tasks.

    Args:
        folder: Holds Matbench's own files, or tables with a column ``matbench_fold``, named after
            the tasks (``find_tasks``).
        out: Folder for the page ``results.md`` and a folder per task, as ``matbench`` leaves it.
            The same call resumes from there.
        config: As in ``train``.
        tasks: Names of tasks; "all" takes those whose data the folder holds.
        folds: Numbers of the folds to run; None runs all that the data of a task have.
        reporter: Shows progress.
        options: As in ``matbench``.

    Returns:
        The results by task.

    Raises:
        NotADirectoryError: There is no such folder.
        ValueError: The folder does not hold the data of a task, or as in ``matbench``.
    """
    reporter = reporter if reporter is not None and is_first() else Reporter()
    data, out = find_tasks(folder), writable_folder(out)
    chosen = list(data) if tasks == ALL or list(tasks) == [ALL] else _listed(tasks)
    if missing := [task for task in chosen if task not in data]:
        raise ValueError(f"{folder} holds no data of {', '.join(missing)}")
    if not chosen:
        raise ValueError(f"{folder} holds data of none of Matbench's tasks: {', '.join(TASKS)}")
    if absent := set(TASKS) - set(data):
        reporter.say(f"no data of {', '.join(sorted(absent))}")
    results = {}
    for task in chosen:
        one = data[task]
        reporter.say(f"{task}, from {one.path.name}")
        results[task] = matbench(
            one.source(), out / task, config, task=task, folds=folds, reporter=reporter, **options
        )
        if is_first():
            write_page(out / PAGE, results, data)
    return results


def _listed(tasks: str | Sequence[str]) -> list[str]:
    """Names of tasks.

    Raises:
        ValueError: There is no such task.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if unknown := [name for name in names if name not in TASKS]:
        raise ValueError(f"no task {unknown[0]}; there is {ALL}, {', '.join(TASKS)}")
    return names


# ---------------------------------------------------------------------------------------------
# The page


def write_page(path: Path, results: Mapping[str, Benchmark], data: Mapping[str, TaskData]) -> None:
    """Write the page with the table of results."""
    rows = [_row(result, data[task]) for task, result in results.items()]
    lines = [HEADER, ("---", *("---:" for _ in HEADER[1:-1]), "---"), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = ""
    if METAL in results and data[METAL].of_gap:
        notes = (
            f"\n{METAL} is made from the gaps of {GAP} (a metal has a gap of exactly 0) and tested "
            "on the folds\nof that task, which are not its own.\n"
        )
    write_text(path, PAGE_TEXT.format(table=table, source=SOURCE, notes=notes))


def _row(result: Benchmark, data: TaskData) -> tuple[str, ...]:
    content = json.loads(result.path.read_text(encoding="utf-8"))
    each = {
        int(name.removeprefix("fold_")): fold
        for name, fold in content["tasks"][result.task]["results"].items()
    }
    folds = sorted(each)
    tested = sum(len(fold["data"]) for fold in each.values())
    official = sum(official_rows(result.task, fold) for fold in folds)
    unusable = sum(len(fold["parameters"]["predicted_by_the_mean"]) for fold in each.values())
    score = "{:.4g} ± {:.2g}".format(*result.over_folds(measure_of(result.task)))
    if result.task == METAL:
        score += f" ({result.over_folds('rocauc')[0]:.4g})"
    else:
        score += f" {result.unit}".rstrip()
    return (
        result.task,
        score,
        _numbers(folds),
        _numbers(result.existing),
        f"{tested:,}",
        f"{max(official - tested, 0):,}",
        f"{unusable:,}",
        _anchors(result.task, [] if data.of_gap else folds),
    )


def measure_of(task: str) -> str:
    """The score by which Matbench's leaderboard ranks models."""
    return "rocauc_of_labels" if task == METAL else "mae"


def official_rows(task: str, fold: int) -> int:
    """Rows that Matbench tests in a fold; those of a class may differ by one."""
    rows, longer = divmod(TASKS[task][0], FOLDS)
    return rows + (fold < longer)


def _numbers(folds: Sequence[int]) -> str:
    return " ".join(map(str, folds))


def _anchors(task: str, folds: Sequence[int]) -> str:
    """The scores of other models over folds, else over all five."""
    texts = []
    for anchor in ANCHORS[task]:
        score = anchor.over(folds) if folds else None
        texts.append(
            f"{anchor.model} {anchor.mean:.4g} (five folds)"
            if score is None
            else f"{anchor.model} {score:.4g}"
        )
    return ", ".join(texts)
