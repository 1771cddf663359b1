"""Site-Net as scikit-learn estimators, for cross-validation, grid searches and pipelines.

X is a list of structures instead of a table of numbers: Crystals, paths, CIF texts, pymatgen
Structures or ASE Atoms.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sitenet.config import SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import Dataset
from sitenet.data.source import unit_of
from sitenet.inference.predict import predict
from sitenet.inference.structures import as_crystal
from sitenet.system.progress import Reporter
from sitenet.system.workers import default_workers, in_order
from sitenet.training.train import train

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_array, check_consistent_length, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError:
    raise ImportError(
        "SiteNetRegressor and SiteNetClassifier need scikit-learn: pip install 'sitenet[sklearn]'"
    ) from None

if TYPE_CHECKING:
    from sklearn.utils import Tags

    from sitenet.model.sitenet import SiteNet

FIELDS = (  # parameters that are fields of the config
    "epochs",
    "max_sites",
    "learning_rate",
    "weight_decay",
    "batch_sites",
    "schedule",
    "ema",
    "precision",
)


class _SiteNetEstimator(BaseEstimator):
    """Common part of regressor and classifier.

    Parameters that are None are as in the config. There are no sample weights. Unless a config of
    your own sets ``last_activation``, it is identity where y has negative values.

    Args:
        config: As in ``SiteNet.from_config``; ``{"base": "paper", "blocks": 3}`` changes any field.
        epochs: Passes over the training crystals.
        max_sites: Largest supercell, in sites; 0 takes the cell as it is.
        learning_rate: Highest learning rate.
        weight_decay: Weight decay of the optimiser.
        batch_sites: Unique sites per batch.
        schedule: Learning rate over the run: constant, cosine or onecycle.
        ema: Per-step decay of averaged weights, which are kept instead of the last ones; 0
            disables it.
        precision: Factors of the kernels' products: float32 or bfloat16.
        valid: Share of the crystals that is not trained on, but chooses the best epoch and
            calibrates intervals; with 0 the last epoch is kept.
        patience: Epochs without a better validation error after which training stops; 0 never
            stops.
        start: Model to fine-tune: a SiteNet, a file, or the name of shipped weights.
        freeze: Train only the layers after pooling.
        primitive: Find primitive cells first.
        disorder: How partial occupancy in CIFs is read: "error" or "average".
        device: "cpu" or "cuda".
        workers: Processes that read structures and find pairs; None chooses.
        verbose: Report the progress of training on standard error.
        random_state: Seed of the split, the weights and the order of batches.

    Attributes:
        model_: The trained SiteNet.
        history_: One dict per epoch.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | SiteNetConfig = "paper",
        *,
        epochs: int | None = None,
        max_sites: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        batch_sites: int | None = None,
        schedule: str | None = None,
        ema: float | None = None,
        precision: str | None = None,
        valid: float = 0.0,
        patience: int = 0,
        start: str | Path | SiteNet | None = None,
        freeze: bool = False,
        primitive: bool = True,
        disorder: str = "error",
        device: str = "cpu",
        workers: int | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.config = config
        self.epochs = epochs
        self.max_sites = max_sites
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_sites = batch_sites
        self.schedule = schedule
        self.ema = ema
        self.precision = precision
        self.valid = valid
        self.patience = patience
        self.start = start
        self.freeze = freeze
        self.primitive = primitive
        self.disorder = disorder
        self.device = device
        self.workers = workers
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def _train(
        self,
        structures: list[Any],
        values: np.ndarray,
        names: Sequence[str],
        classes: Sequence[str] = (),
    ) -> None:
        crystals = self._crystals(structures)
        units = tuple("" if name in classes else unit_of(name) for name in names)
        numbers = [str(k) for k in range(len(crystals))]
        data = Dataset(numbers, crystals, values, tuple(names), units, [""] * len(crystals))
        changes = {name: getattr(self, name) for name in FIELDS}
        if self.random_state is not None:
            changes["seed"] = int(check_random_state(self.random_state).randint(2**31 - 1))
        result = train(
            data,
            config=self.config,
            target=names,
            classes=classes,
            start=self.start,
            freeze=self.freeze,
            primitive=self.primitive,
            disorder=self.disorder,
            device=self.device,
            workers=self.workers,
            reporter=_reporter() if self.verbose else None,
            valid=self.valid,
            test=0.0,
            patience=self.patience,
            **{name: value for name, value in changes.items() if value is not None},
        )
        if result.left_out:
            first = result.left_out[0]
            raise ValueError(f"structure {first.id} cannot be used: {first.reason}")
        self.model_, self.history_ = result.model, result.history

    def _predict(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "model_")
        return predict(self.model_, self._crystals(self._listed(X)), primitive=False)

    def _crystals(self, structures: list[Any]) -> list[Crystal]:
        workers = default_workers(len(structures)) if self.workers is None else self.workers
        read = _Read(self.primitive, self.disorder)
        return [c for part in in_order(read, enumerate(structures), workers) for c in part]

    def _listed(self, X: Any) -> list[Any]:
        """X as a list.

        Raises:
            TypeError: X is a single structure.
            ValueError: X is empty, or has other dimensions than (crystals,) and (crystals, 1).
        """
        one = isinstance(X, (str, os.PathLike, Crystal))
        if one or type(X).__module__.partition(".")[0] in ("ase", "pymatgen"):
            raise TypeError(f"X must be a list of structures, got one {type(X).__name__}")
        if hasattr(X, "to_numpy"):  # pandas
            X = X.to_numpy()
        if isinstance(X, np.ndarray):
            if X.ndim == 2 and X.shape[1] == 1:
                X = X[:, 0]
            if X.ndim != 1:
                raise ValueError(f"X must be a list of structures, got an array of shape {X.shape}")
        structures = list(X)
        if not structures:
            raise ValueError("X holds 0 structures, expected at least 1")
        return structures


class SiteNetRegressor(RegressorMixin, _SiteNetEstimator):
    __doc__ = f"""Predict numbers from structures. {_SiteNetEstimator.__doc__}"""

    def fit(self, X: Any, y: Any) -> SiteNetRegressor:
        """Train a model.

        Args:
            X: (crystals,) structures.
            y: (crystals,) values, or (crystals, targets), NaN where one of several is missing. The
                name of a pandas Series or the columns of a DataFrame name the targets; a suffix
                such as that of ``band_gap_eV`` gives the unit.
        """
        structures = self._listed(X)
        if y is None:
            raise ValueError("SiteNetRegressor requires y to be passed, but the target y is None")
        names = getattr(y, "columns", [getattr(y, "name", None) or "target"])
        values = np.asarray(y, dtype=object)
        self._one_d = values.ndim == 1
        if self._one_d:
            values = values[:, None]
        finite = True if self._one_d else "allow-nan"
        values = check_array(values, dtype=np.float64, ensure_all_finite=finite, input_name="y")
        check_consistent_length(structures, values)
        if len(names) != values.shape[1]:
            names = [f"target{k}" for k in range(values.shape[1])]
        self._train(structures, values, list(map(str, names)))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict values: (crystals,), or (crystals, targets) if y had two dimensions."""
        values = self._predict(X)
        return values if self._one_d else values.reshape(len(values), -1)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class SiteNetClassifier(ClassifierMixin, _SiteNetEstimator):
    __doc__ = f"""Predict classes of structures: one of two, or one against the rest of several.
    {_SiteNetEstimator.__doc__}    classes_: (classes,) sorted labels.
    """

    def fit(self, X: Any, y: Any) -> SiteNetClassifier:
        """Train a model.

        Args:
            X: (crystals,) structures.
            y: (crystals,) labels.
        """
        structures = self._listed(X)
        y = check_array(column_or_1d(y, warn=True), ensure_2d=False, dtype=None, input_name="y")
        check_consistent_length(structures, y)
        check_classification_targets(y)
        self.classes_, number = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class only, {self.classes_[0]}; expected at least two")
        values = np.eye(len(self.classes_))[number]
        names = list(map(str, self.classes_))
        if len(names) == 2:
            values, names = values[:, 1:], names[1:]
        self._train(structures, values, names, names)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict probabilities, (crystals, classes), in the order of ``classes_``."""
        p = self._predict(X)
        if p.ndim == 1:
            return np.stack([1 - p, p], 1)
        p = p + np.finfo(float).tiny
        return p / p.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """Predict the most probable label of each structure, (crystals,)."""
        best = self.predict_proba(X).argmax(1)  # before classes_, as it checks that there is one
        return self.classes_[best]


class _Read:
    """Read numbered structures as crystals; can be sent to worker processes."""

    def __init__(self, primitive: bool, disorder: str) -> None:
        self.primitive, self.disorder = primitive, disorder

    def __call__(self, structures: list[tuple[int, Any]]) -> list[Crystal]:
        crystals = []
        for number, structure in structures:
            try:
                crystal = as_crystal(structure, self.disorder)
                crystals.append(crystal.primitive() if self.primitive else crystal)
            except (TypeError, ValueError, OSError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"structure {number} of X: {error}") from error
        return crystals


def _reporter() -> Reporter:
    from rich.console import Console

    return Reporter(Console(stderr=True))
