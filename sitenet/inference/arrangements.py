"""Predictions over the ordered arrangements of disordered crystals."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from sitenet.crystal.arrangements import Sampling, sample_arrangements
from sitenet.crystal.crystal import Crystal
from sitenet.inference.predict import from_store, pair_stores
from sitenet.inference.structures import as_crystal, preparation
from sitenet.inference.table import COVERAGE, Prediction, intervals, unlike_training
from sitenet.model.calibration import half_widths, zero_probabilities
from sitenet.model.target import learned_values
from sitenet.pairs.maker import PairMaker
from sitenet.pairs.store import PairStore

if TYPE_CHECKING:
    from sitenet.model.ensemble import Model

DISTANCE_STEP = 1e-3  # angstrom: distances that differ by less may count as equal


@dataclass(eq=False, repr=False)
class ArrangedPrediction:
    """Predictions for a disordered crystal, over its ordered arrangements.

    Attributes:
        values: (arrangements, targets) predictions for those that the model can tell apart; for a
            class, the probability of class 1.
        counts: (arrangements,) int64, how many draws each of them stands for.
        mean: (targets,) of the values, weighted by the counts.
        spread: (targets,) standard deviation of the values, weighted likewise.
        model_half_width: (targets,) root mean square of half the width of the model's own interval,
            infinite where it has none; on the scale that is learned.
        half_width: (targets,) of the interval around the mean, which joins both, on the scale that
            is learned; see ``predict_arrangements``.
        encoding: (encoding,) mean of the encodings, weighted likewise.
        unlike: why arrangements that stand for more than half of the draws are unlike the training
            set, the most frequent reason; "" if they are not; None if the model is not calibrated.
        warnings: doubts about the structure and its arrangements, one sentence each.
    """

    values: np.ndarray
    counts: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    model_half_width: np.ndarray
    half_width: np.ndarray
    encoding: np.ndarray
    unlike: str | None
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        mean = ", ".join(f"{x:.4g} ± {s:.2g}" for x, s in zip(self.mean, self.spread, strict=True))
        return f"ArrangedPrediction({mean} over {len(self)} arrangements)"


def predict_arrangements(
    model: Model,
    structure: Any,
    samples: int = Sampling.samples,
    seed: int = Sampling.seed,
    sites: int = Sampling.sites,
    *,
    coverage: float = COVERAGE,
    max_sites: int | None = None,
    primitive: bool | None = None,
) -> ArrangedPrediction:
    """Predict a disordered crystal as the mean over ordered arrangements of it.

    Half the width of the interval is sqrt(h² + (z s)²): h is the root mean square of half the width
    of the model's intervals, s the standard deviation over arrangements (both of the logarithm, if
    that is what the model learns), and z the quantile of the
    normal distribution for the coverage, 1.645 for 90 %. The two are taken as independent. The
    model's errors are not averaged away, as they are much alike for all arrangements of a crystal.

    Args:
        model: A SiteNet or an Ensemble.
        structure: One structure, as in ``predict``.
        samples: How many arrangements to draw, as in ``sample_arrangements``.
        seed: As in ``sample_arrangements``.
        sites: Most sites of the supercell that they are drawn in, as in ``sample_arrangements``.
        coverage: Share of true values that the interval should hold.
        max_sites: As in ``predict``.
        primitive: As in ``predict``; whether to draw from the primitive cell.

    Raises:
        CifError, ValueError, TypeError: The structure cannot be used; says why.
    """
    sampling = Sampling(samples, seed, sites)
    how = preparation(model.config, primitive, "average")
    crystal = as_crystal(structure, how.disorder)
    if how.primitive:
        crystal = crystal.primitive()
    return over_arrangements(model, crystal, PairMaker(model.config, max_sites), sampling, coverage)


def over_arrangements(
    model: Model, crystal: Crystal, make: PairMaker, sampling: Sampling, coverage: float
) -> ArrangedPrediction:
    """Predict a crystal over its arrangements, in the cell that it is in.

    Raises:
        ValueError: The crystal cannot be used.
    """
    drawn = sample_arrangements(crystal, sampling.samples, sampling.seed, sampling.sites)
    counts: dict[int, int] = {}
    values, encodings, reasons = [], [], []
    draws = iter(drawn.counts.tolist())
    for store in pair_stores(drawn.crystals, make):
        new: list[int] = []
        for k, key in enumerate(fingerprints(store, model.config.blocks).tolist()):
            if key not in counts:
                new.append(k)
            counts[key] = counts.get(key, 0) + next(draws)
        outputs = from_store(model, store, new)
        values += [y for y, _ in outputs]
        encodings += [encoding for _, encoding in outputs]
        if outputs:
            unlike = unlike_training(model, np.stack(encodings[-len(new) :]), store.batch(new))
            reasons += unlike or []
    y, z, weights = np.stack(values), np.stack(encodings), np.array(list(counts.values()))
    if not np.isfinite(y).all():
        raise ValueError("the prediction of an arrangement is not a number")
    share = (weights / weights.sum())[:, None]
    mean, spread = _mean_and_spread(y, share)
    _, learned_spread = _mean_and_spread(learned_values(model.targets, y), share)
    own = np.sqrt((share * half_widths(model, z, coverage) ** 2).sum(0))
    quantile = NormalDist().inv_cdf((1 + coverage) / 2)
    return ArrangedPrediction(
        y,
        weights,
        mean,
        spread,
        own,
        np.hypot(own, quantile * learned_spread),
        (share * z).sum(0).astype(z.dtype),
        _mostly(reasons, weights) if reasons else None,
        crystal.warnings + drawn.warnings,
    )


def _mean_and_spread(y: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over arrangements, (targets,), weighted by their shares."""
    mean = (share * y).sum(0)
    return mean, np.sqrt((share * (y - mean) ** 2).sum(0))


def arranged_row(model: Model, prediction: ArrangedPrediction, crystal: Crystal) -> Prediction:
    """The prediction over arrangements of a crystal as a row of a table."""
    values, widths = prediction.mean[None], prediction.half_width[None]
    (low,), (high,) = intervals(model.targets, values, widths, model.lowest)
    (zero,) = zero_probabilities(model, prediction.encoding[None])
    # No training crystal is disordered unless the model averages over it.
    has_index = model.calibration is not None and model.calibration.index is not None
    return Prediction(
        crystal.name or "",
        crystal.reduced_formula,
        prediction.mean.tolist(),
        [None if np.isnan(x) else x for x in low.tolist()],
        [None if np.isnan(x) else x for x in high.tolist()],
        prediction.unlike,
        "; ".join(prediction.warnings),
        prediction.spread.tolist(),
        len(prediction),
        [x if np.isfinite(x) else None for x in zero.tolist()],
        "" if has_index else None,
    )


def _mostly(reasons: list[str], counts: np.ndarray) -> str:
    """The most frequent reason if more than half of the draws have one, else ""."""
    totals: dict[str, int] = {}
    for reason, count in zip(reasons, counts.tolist(), strict=True):
        totals[reason] = totals.get(reason, 0) + count
    like = totals.pop("", 0)
    return "" if 2 * like >= counts.sum() else max(totals, key=lambda reason: totals[reason])


# ---------------------------------------------------------------------------------------------
# Arrangements that a model cannot tell apart


def fingerprints(store: PairStore, rounds: int) -> np.ndarray:
    """Hashes of crystals that are equal only where no Site-Net of some blocks can tell them apart.

    Colour refinement: the hash of a row takes in those of its neighbours with their distances, once
    per block. Symmetry-equivalent arrangements get equal hashes, unless a distance lies on the edge
    between two steps of 0.001 angstrom. For models that see angles, the vectors to the neighbours
    are taken in as they are, so that only arrangements in the same orientation are equal.

    Args:
        store: Pairs of ordered crystals.
        rounds: Blocks of the model.

    Returns:
        (crystals,) uint64.
    """
    c = {name: column.cpu().numpy() for name, column in store.columns.items()}
    begins = np.cumsum(np.append(0, c["num_pairs"]))[:-1].astype(np.int64)
    first_row = np.cumsum(np.append(0, c["num_rows"]))[:-1].astype(np.int64)
    pairs = store.num_pairs
    neighbour = c["sites"] + np.repeat(first_row, pairs)
    steps = [np.round(c[n] / DISTANCE_STEP) for n in ("distance", "sine_distance") if n in c]
    if "vectors" in c:
        towards = _mixed(*np.round(c["vectors"].reshape(-1, 3) / DISTANCE_STEP).T)
        first_image = np.cumsum(np.append(0, c["multiplicity"]))[:-1].astype(np.int64)
        steps.append(np.add.reduceat(towards, first_image))
    rows = _mixed(c["numbers"], c["oxidation"].astype(np.float64).view(np.int64))
    for _ in range(rounds):
        each = _mixed(rows[neighbour], *steps) * c["multiplicity"].astype(np.uint64)
        rows = _mixed(rows, np.add.reduceat(each, begins))
    total = np.add.reduceat(_mixed(rows) * c["count"].astype(np.uint64), first_row)
    return _mixed(total, c["num_sites"], c["images"])


def _mixed(*columns: np.ndarray) -> np.ndarray:
    """One 64-bit hash per row of the columns, as SplitMix64 mixes (Steele et al., 2014)."""
    total = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        whole = column if column.dtype == np.uint64 else column.astype(np.int64).view(np.uint64)
        x = total + whole + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total = x ^ (x >> np.uint64(31))
    return total
