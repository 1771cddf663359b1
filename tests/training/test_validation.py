"""Validation: its error, the model that is judged, and the epoch that is kept."""

import numpy as np
import pytest
import torch
from toy_crystals import toy_dataset
from trainers import FAST, same, trainer_of, weights

from sitenet.data.dataset import split
from sitenet.training.train import train
from sitenet.training.trainer import Trainer
from sitenet.training.validation import outputs, validation_batches


def test_the_average_is_what_is_judged_and_kept():
    run = trainer_of(FAST.replace(ema=0.9))
    run.run()
    assert run.judged is run.average.average and run.best is run.judged
    assert not same(weights(run.judged), weights(run.model))


@pytest.mark.parametrize("kind", ["value", "class"])
def test_the_published_validation_error_is_the_mean_of_batch_means(kind):
    data = toy_dataset(60, names=("size", "gap"))
    if kind == "class":
        data.targets = (data.targets > np.median(data.targets, 0)).astype(float)
    data.targets[::3, 1] = np.nan
    config = FAST.replace(valid_mean="batches", batch_sites=24)
    parts = split(data, 0.5, 0, seed=0)
    run = trainer_of(config, data, parts=parts, kind=kind)
    orders = []
    for epoch in (1, 2):
        run.progress.epoch = epoch
        errors = run.validate()
        batches = validation_batches(run.data, run.config, epoch)
        orders.append(batches)
        assert sorted(np.concatenate(batches)) == list(range(30)) and len(batches) > 3
        assert len(set(map(len, batches))) > 1, "batches of equal size could not tell the two means"
        index = run.data.parts.valid
        p = torch.as_tensor(outputs(run.judged, run.data.store, index)[0])
        truth = torch.as_tensor(data.targets[index])
        error = (p - truth).abs()
        if kind == "class":
            error = -(truth * p.log() + (1 - truth) * (1 - p).log())
        want = torch.stack([error[batch].nanmean(0) for batch in batches]).nanmean(0)
        name = {"value": "mae", "class": "log_loss"}[kind]
        for k, target in enumerate(run.model.targets):
            assert errors[f"valid_{target.name}_{name}_of_batches"] == pytest.approx(float(want[k]))
        std = torch.tensor([t.std for t in run.model.targets])
        assert errors["valid_error"] == pytest.approx(float((want / std).sum()))
        assert errors["valid_error"] != pytest.approx(float((error.nanmean(0) / std).sum()))
    assert orders[0] != orders[1], "published validation batches differ between epochs"


def test_it_stops_when_validation_gets_no_better(monkeypatch):
    errors = iter([3.0, 1.0, 2.0, 1.5, 1.0, 0.5])
    validated = []

    def validate(self):
        validated.append(weights(self.model))
        return {"valid_size_A_mae": 0.0, "valid_error": next(errors)}

    monkeypatch.setattr(Trainer, "validate", validate)
    result = train(toy_dataset(20), config=FAST, epochs=50, patience=3)
    assert len(result.history) == 5
    assert same(weights(result.model), validated[1])
