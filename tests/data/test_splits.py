"""Folds for cross-validation: equal in size, whole groups, every crystal in one."""

import numpy as np
import pytest
from toy_crystals import toy_dataset

from sitenet.data.splits import folds


def repeated(times=3, number=12):
    """Every toy crystal several times."""
    data = toy_dataset(number).select(np.tile(np.arange(number), times))
    data.ids = [str(k) for k in range(len(data))]
    return data


@pytest.mark.parametrize("count", [2, 5, 12])
def test_folds_are_of_equal_size_and_of_the_seed(count):
    data = toy_dataset(12)
    fold = folds(data, count, seed=1)
    sizes = np.bincount(fold)[1:]
    assert len(sizes) == count and sizes.max() - sizes.min() <= 1
    assert (fold == folds(data, count, seed=1)).all()
    assert (fold != folds(data, count, seed=2)).any()


@pytest.mark.parametrize("group", ["structure", "formula", "elements"])
def test_groups_stay_together(group):
    data = repeated()
    fold, groups = folds(data, 4, seed=0, group=group), data.groups(group)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    # The largest group opens or fills a fold last, so no fold exceeds the mean by more than it.
    sizes, largest = np.bincount(fold)[1:], np.bincount(groups).max()
    assert sizes.max() <= len(data) / 4 + largest and sizes.min() > 0
    assert any(len(set(folds(data, 4, 0)[groups == g])) > 1 for g in set(groups))


def test_too_many_folds_are_refused():
    with pytest.raises(ValueError, match="13 folds need as many crystals of different structure"):
        folds(repeated(), 13, 0, "structure")
    with pytest.raises(ValueError, match="folds must be at least 2, got 1"):
        folds(toy_dataset(3), 1, 0)
