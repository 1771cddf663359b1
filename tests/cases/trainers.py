"""Small trainers and run folders for tests of training."""

import csv
from pathlib import Path

import torch
from toy_crystals import SMALL, toy_dataset

from sitenet.config import load_config
from sitenet.data.dataset import split
from sitenet.model.sitenet import SiteNet, Target
from sitenet.pairs.columns import columns_of
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.maker import pair_options
from sitenet.pairs.store import PairStore
from sitenet.training.data import TrainingData
from sitenet.training.trainer import Trainer

# Without norms, a model this small learns in a few epochs.
FAST = SMALL.replace(
    norm="none",
    post_pool_norm="none",
    scale_site_features=True,
    batch_sites=0,
    batch_crystals=4,
    learning_rate=1e-2,
    epochs=3,
    scale_targets=True,
    last_activation="identity",
)
SPHERE = load_config("sphere").replace(
    embedding=4,
    heads=2,
    blocks=2,
    site_dim=4,
    interaction_dim=3,
    hidden=(7,),
    pre_pool=(6,),
    post_pool=(5,),
    batch_crystals=4,
    radius=4.0,
)
DENSITY = SPHERE.replace(spectrum_channels=3, spectrum_radial=2, spectrum_mixed=4)
CONFIGS = {  # configs whose steps can be captured as CUDA graphs
    "published": SMALL.replace(batch_sites=9),
    "crystals": FAST,
    "max pooling": SMALL.replace(pooling="max", batch_sites=9),
    "sphere": SPHERE,
    "density": DENSITY,
}


def store_of(config, crystals):
    """Return the pairs of crystals, found with the options of a config."""
    pairs = [find_pairs(c, **pair_options(config)) for c in crystals]
    return PairStore.of([columns_of(p) for p in pairs])


def trainer_of(
    config=FAST, data=None, seed=0, double=False, parts=None, kind="value", device="cpu"
):
    """Return a Trainer over toy crystals that writes no files."""
    data = toy_dataset(12) if data is None else data
    torch.manual_seed(seed)
    model = SiteNet(config, [Target(n, kind=kind) for n in data.names]).to(device)
    store = store_of(config, data.crystals).to(device)
    parts = parts or split(data, 0, 0, seed=0)
    return Trainer(model.double() if double else model, TrainingData(store, data.targets, parts))


def padded(trainer):
    """Make a trainer take its steps on padded batches, eagerly; return it."""
    trainer.captured = trainer.padded_steps(None)
    return trainer


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def timeless(history):
    return [{k: v for k, v in h.items() if "second" not in k} for h in history]


def predicted(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's predictions.csv."""
    with open(run / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def stop_after_two(entry):
    """Interrupt a run after its second epoch, as its ``after_epoch``."""
    if entry["epoch"] == 2:
        raise KeyboardInterrupt


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


class FakeGraphs:
    """Graphs on the CPU: a replay runs the work again; captures fail once some were made."""

    def __init__(self, captures):
        self.remaining = captures

    def run(self, work):
        return work()

    def capture(self, work):
        if not self.remaining:
            try:
                raise RuntimeError(
                    "CUDA error: operation not permitted when stream is capturing\nso"
                )
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error")
        self.remaining -= 1
        return work
