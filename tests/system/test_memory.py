"""Memory of a training step and of a prediction, Python and torch included."""

import pytest
from bench_model import peak_memory, predict_once, train_once

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bf16", [False, True])
def test_a_training_step_of_1200_sites_times_500_takes_less_than_1_gb(bf16):
    assert peak_memory(train_once, 1200, 500, bf16) < 1


def test_a_prediction_by_rows_takes_no_more_for_a_larger_crystal():
    """Pairs are never all in memory: 1,500 sites have 2.2 M pairs, 2,500 have 6.2 M."""
    small, large = (peak_memory(predict_once, sites) for sites in (1500, 2500))
    assert large < 4
    assert large < small + 0.2
