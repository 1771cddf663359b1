"""Site-Net as scikit-learn estimators, for cross-validation, grid searches and pipelines.

X is a list of structures instead of a table of numbers: Crystals, paths, CIF texts, pymatgen
Structures or ASE Atoms.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sitenet.config import SiteNetConfig, TrainingConfig
from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import Dataset
from sitenet.data.source import unit_of
from sitenet.inference.predict import outputs
from sitenet.inference.structures import as_crystal
from sitenet.model.calibration import half_widths, spread
from sitenet.system.progress import Reporter
from sitenet.system.settings import check_keys
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

ONE_SIGMA = 0.6827  # share of a normal distribution within one standard deviation of its mean


class _SiteNetEstimator(BaseEstimator):
    """Common part of regressor and classifier.

    Every field of ``TrainingConfig`` and ``SiteNetConfig`` is a parameter too, such as ``epochs``,
    ``learning_rate``, ``members``, ``blocks`` or ``max_sites``; None, the default, is as in the
    config. There are no sample weights. Unless a config of your own sets ``last_activation``, it is
    identity where y has negative values.

    Args:
        config: As in ``SiteNet.from_config``; ``{"base": "paper", "blocks": 3}`` changes any field.
            None takes the most accurate one, or the settings that trained ``start``, as in
            ``sitenet.train``.
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
        random_state: Seed of the split, the weights and the order of batches; None takes ``seed``.
        fields: Fields of the config by name.

    Attributes:
        model_: The trained SiteNet.
        history_: One dict per epoch.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | SiteNetConfig | None = None,
        *,
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
        **fields: Any,
    ) -> None:
        self.config = config
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
        try:
            check_keys(fields, _FIELDS, type(self).__name__)
        except ValueError as error:
            raise TypeError(str(error)) from None
        for name in _FIELDS:
            setattr(self, name, fields.get(name))

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
        changes = {"test": 0.0} | {
            name: value for name in _FIELDS if (value := getattr(self, name)) is not None
        }
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
            patience=self.patience,
            **changes,
        )
        if result.left_out:
            first = result.left_out[0]
            raise ValueError(f"structure {first.id} cannot be used: {first.reason}")
        self.model_, self.history_ = result.model, result.history

    def encode(self, X: Any) -> np.ndarray:
        """Compute the vectors that predictions are made from, (crystals, ``encoding_size``)."""
        return self._outputs(X)[1]

    def _outputs(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Properties (crystals, targets) and encodings (crystals, encoding)."""
        check_is_fitted(self, "model_")
        values, encodings = zip(*outputs(self.model_, self._crystals(self._listed(X))), strict=True)
        return np.array(values), np.array(encodings)

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


def _fields() -> tuple[str, ...]:
    """Fields of the config that are not parameters of their own."""
    own = inspect.signature(_SiteNetEstimator.__init__).parameters
    names = [f.name for cls in (TrainingConfig, SiteNetConfig) for f in dataclasses.fields(cls)]
    return tuple(name for name in names if name not in own and name != "training")


def _with_fields(function: Callable[..., None], names: Sequence[str]) -> inspect.Signature:
    """The signature of a function whose last parameter, ``**fields``, is spelled out."""
    signature = inspect.signature(function)
    *parameters, _ = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    fields = [inspect.Parameter(name, keyword, default=None, annotation="Any") for name in names]
    return signature.replace(parameters=[*parameters, *fields])


_FIELDS = _fields()
# scikit-learn reads the parameters of an estimator from its signature.
_SiteNetEstimator.__init__.__signature__ = _with_fields(  # type: ignore[attr-defined]
    _SiteNetEstimator.__init__, _FIELDS
)


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

    def predict(
        self, X: Any, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict values: (crystals,), or (crystals, targets) if y had two dimensions.

        Args:
            X: (crystals,) structures.
            return_std: Return standard deviations of the errors as well, of the same shape: half
                the width of the interval that holds 68 % of true values, or, without validation
                crystals, the spread of an ensemble.

        Raises:
            ValueError: ``return_std``, but there are neither validation crystals nor members.
        """
        values, encodings = self._outputs(X)
        shape = (len(values),) if self._one_d else values.shape
        if not return_std:
            return values.reshape(shape)
        width = half_widths(self.model_, encodings, ONE_SIGMA)
        std = width if np.isfinite(width).all() else spread(self.model_, encodings)
        if std is None:
            raise ValueError(
                "return_std needs more validation crystals, such as valid=0.1 of some dozens, or "
                "an ensemble, such as members=3"
            )
        return values.reshape(shape), std.reshape(shape)

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
        p, _ = self._outputs(X)
        if p.shape[1] == 1:
            return np.concatenate([1 - p, p], 1)
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
