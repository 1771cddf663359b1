"""Errors against scikit-learn's."""

import numpy as np
import pytest

from sitenet.inference.metrics import class_scores, regression_scores, roc_auc

sklearn = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("seed", range(5))
def test_values(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.normal(size=(2, 30))
    missing = rng.random(30) < 0.3
    scores = regression_scores(np.where(missing, np.nan, truth), predicted)
    x, y = truth[~missing], predicted[~missing]
    assert scores == pytest.approx(
        {
            "crystals": len(x),
            "mae": sklearn.mean_absolute_error(x, y),
            "rmse": sklearn.root_mean_squared_error(x, y),
            "max_error": sklearn.max_error(x, y),
            "r2": sklearn.r2_score(x, y),
        }
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_classes(seed, ties):
    rng = np.random.default_rng(seed)
    truth, predicted = (rng.random(40) < 0.3).astype(float), rng.random(40)
    if ties:
        predicted = predicted.round(1)
    missing = rng.random(40) < 0.3
    scores = class_scores(np.where(missing, np.nan, truth), predicted)
    x, p = truth[~missing], predicted[~missing]
    ranges = [(p >= k / 10) & (p < (k + 1) / 10 if k < 9 else p <= 1) for k in range(10)]
    surplus = [abs(p[r].mean() - x[r].mean()) * r.mean() for r in ranges if r.any()]
    assert scores == pytest.approx(
        {
            "crystals": len(x),
            "roc_auc": sklearn.roc_auc_score(x, p),
            "accuracy": sklearn.accuracy_score(x, p > 0.5),
            "f1": sklearn.f1_score(x, p > 0.5),
            "log_loss": sklearn.log_loss(x, np.clip(p, 1e-15, 1 - 1e-15)),
            "calibration_error": sum(surplus),
        }
    )


def test_certain_and_wrong_costs_much_but_no_infinity():
    assert 30 < class_scores(np.array([1.0]), np.array([0.0]))["log_loss"] < 40


def test_one_class_alone_has_no_roc_auc():
    assert np.isnan(roc_auc(np.ones(3, dtype=bool), np.arange(3.0)))
    assert np.isnan(class_scores(np.zeros(3), np.arange(3) / 3)["roc_auc"])


def test_equal_true_values_have_no_r2():
    assert np.isnan(regression_scores(np.ones(3), np.arange(3.0))["r2"])


@pytest.mark.parametrize("scores", [regression_scores, class_scores])
def test_nothing_known_gives_nothing(scores):
    found = scores(np.full(3, np.nan), np.zeros(3))
    assert found.pop("crystals") == 0
    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize("scores", [regression_scores, class_scores])
def test_a_prediction_that_is_no_number_is_not_passed_over(scores):
    found = scores(np.array([0.0, 1, 1]), np.array([0.1, np.nan, 0.9]))
    assert found.pop("crystals") == 3
    assert np.isnan(list(found.values())).all()
