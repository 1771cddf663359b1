"""Errors of other models on the structure tasks of Matbench, to compare with.

Source: the leaderboards of matbench_v0.1 as published in github.com/materialsproject/matbench
(docs_src/Full Benchmark Data and docs_src/Leaderboards Per-Task, at commit 2370a43 of 2023; MODNet
at 200ebec, MegNet at 3288684). Every model was trained on four folds per tested fold. Scores are
mean absolute errors in the task's unit, and for matbench_mp_is_metal areas under the ROC curve of
labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SOURCE = "https://github.com/materialsproject/matbench/tree/main/docs_src"


@dataclass(frozen=True)
class Anchor:
    """The published score of a model on a task.

    Attributes:
        model: Its name on the leaderboard.
        mean: Over all five folds.
        folds: (5,) score per fold; empty where only the mean is at hand.
    """

    model: str
    mean: float
    folds: tuple[float, ...] = ()

    def over(self, folds: Sequence[int]) -> float | None:
        """The mean over some folds; None where it is not known."""
        if not self.folds:
            return self.mean if sorted(folds) == list(range(5)) else None
        return float(np.mean([self.folds[k] for k in folds]))


def _anchors(task: str) -> list[Anchor]:
    anchors = [
        Anchor("coGN", float(np.mean(_COGN[task])), _COGN[task]),
        Anchor("MODNet v0.1.12", float(np.mean(_MODNET[task])), _MODNET[task]),
    ]
    anchors += [Anchor(model, mean, folds) for model, mean, folds in _OTHERS.get(task, ())]
    return sorted(anchors, key=lambda a: a.mean, reverse=task == "matbench_mp_is_metal")


_COGN = {
    "matbench_dielectric": (0.1775, 0.2663, 0.4209, 0.2986, 0.3805),
    "matbench_jdft2d": (22.2500, 37.2341, 60.1682, 24.3924, 41.7814),
    "matbench_log_gvrh": (0.0681, 0.0700, 0.0685, 0.0699, 0.0679),
    "matbench_log_kvrh": (0.0521, 0.0547, 0.0495, 0.0579, 0.0536),
    "matbench_mp_e_form": (0.0174, 0.0167, 0.0168, 0.0173, 0.0169),
    "matbench_mp_gap": (0.1532, 0.1561, 0.1570, 0.1549, 0.1583),
    "matbench_mp_is_metal": (0.9162, 0.9092, 0.9117, 0.9135, 0.9113),
    "matbench_perovskites": (0.0273, 0.0280, 0.0256, 0.0271, 0.0266),
    "matbench_phonons": (32.1211, 29.1911, 30.2587, 30.7953, 26.1921),
}
_MODNET = {
    "matbench_dielectric": (0.1691, 0.2410, 0.3899, 0.2775, 0.2781),
    "matbench_jdft2d": (25.5515, 30.4506, 45.1925, 26.9801, 37.7845),
    "matbench_log_gvrh": (0.0731, 0.0738, 0.0731, 0.0738, 0.0718),
    "matbench_log_kvrh": (0.0536, 0.0559, 0.0510, 0.0585, 0.0549),
    "matbench_mp_e_form": (0.0402, 0.0497, 0.0475, 0.0464, 0.0400),
    "matbench_mp_gap": (0.2147, 0.2161, 0.2165, 0.2309, 0.2211),
    "matbench_mp_is_metal": (0.9135, 0.8995, 0.9096, 0.8849, 0.9116),
    "matbench_perovskites": (0.0932, 0.0939, 0.0861, 0.0892, 0.0914),
    "matbench_phonons": (34.7662, 36.3582, 36.5373, 32.1725, 31.5413),
}
_MEGNET_GAP = (0.1845, 0.1970, 0.2039, 0.1817, 0.1999)
_MEGNET_METAL = (0.9048, 0.9013, 0.9035, 0.9008, 0.9002)
_MEGNET_PEROVSKITES = (0.0355, 0.0374, 0.0335, 0.0363, 0.0331)
_MEGNET_PHONONS = (31.6159, 31.0426, 25.2700, 29.7114, 26.1630)
_OTHERS: dict[str, tuple[tuple[str, float, tuple[float, ...]], ...]] = {
    "matbench_dielectric": (("ALIGNN", 0.3449, ()),),
    "matbench_jdft2d": (("ALIGNN", 43.4244, ()),),
    "matbench_log_gvrh": (("coNGN", 0.0670, ()), ("ALIGNN", 0.0715, ())),
    "matbench_log_kvrh": (("coNGN", 0.0491, ()), ("ALIGNN", 0.0568, ())),
    "matbench_mp_e_form": (("ALIGNN", 0.0215, ()), ("CGCNN v2019", 0.0337, ())),
    "matbench_mp_gap": (("MegNet (kgcnn)", 0.1934, _MEGNET_GAP), ("ALIGNN", 0.1861, ())),
    "matbench_mp_is_metal": (
        ("CGCNN v2019", 0.9520, ()),
        ("ALIGNN", 0.9128, ()),
        ("MegNet (kgcnn)", 0.9021, _MEGNET_METAL),
    ),
    "matbench_perovskites": (
        ("MegNet (kgcnn)", 0.0352, _MEGNET_PEROVSKITES),
        ("ALIGNN", 0.0288, ()),
    ),
    "matbench_phonons": (("MegNet (kgcnn)", 28.7606, _MEGNET_PHONONS), ("ALIGNN", 29.5385, ())),
}

ANCHORS = {task: _anchors(task) for task in _COGN}
