"""Whole training steps and predictions with the paper's model, and the memory they take.

A step is forward, loss, backward, clipping and AdamW. The published way has the same crystals
unmerged and padded to the longest; its features are computed beforehand, as its files hold them,
ours are computed in the step.
"""

import multiprocessing

import numpy as np
import pytest
import torch
from cases import Case, matbench_pairs, measure_in_turn, peak_gigabytes

from sitenet.config import SiteNetConfig
from sitenet.model.sitenet import SiteNet
from sitenet.pairs.features import pair_features
from sitenet.pairs.finder import PairFinder, find_pairs
from sitenet.pairs.pairs import Pairs
from sitenet.published.checkpoint import to_published
from sitenet.published.model import PaddedBatch, PublishedSiteNet

CONFIG = SiteNetConfig(last_activation="identity")


def paper_model():
    """The paper's model with random weights and random elemental features."""
    torch.manual_seed(0)
    model = SiteNet(CONFIG)
    model.element_table.normal_()
    return model


def padded(model, pairs):
    """The published input."""
    features = pair_features(pairs, CONFIG.interaction_features, torch.float32)
    elemental = torch.cat([model.element_table[pairs.numbers], pairs.oxidation[:, None]], 1)
    return PaddedBatch.from_rows(
        features, pairs.offsets, pairs.sites, pairs.crystals, pairs.numbers, elemental.float()
    )


def stepper(model, batch, bf16=False):
    """A function that takes one training step and returns the predictions before it."""
    training = CONFIG.training
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        eps=training.epsilon,
        weight_decay=training.weight_decay,
        amsgrad=training.amsgrad,
        fused=isinstance(model, SiteNet),
    )

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = model(batch).flatten()
        optimiser.zero_grad()
        (y.float() - 1).abs().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimiser.step()
        return y.detach()

    return step


@pytest.mark.parametrize("max_sites", [50, 100, 500])
def test_training_step(max_sites, table, full):
    if not full and max_sites != 100:
        pytest.skip("with --full only")
    sites = (1200 if full else 600) if max_sites < 500 else 300
    merged, unmerged = (matbench_pairs(sites, max_sites, merge) for merge in (True, False))
    models = [paper_model() for _ in range(3)]
    published = PublishedSiteNet(CONFIG)
    published.load_state_dict(to_published(models[0]))
    steps = {
        "published": stepper(published, padded(models[0], unmerged)),
        "ours, unmerged": stepper(models[0], unmerged),
        "ours": stepper(models[1], merged),
        "ours, bf16 products": stepper(models[2], merged, bf16=True),
    }
    y = {name: step() for name, step in steps.items()}
    for name, value in y.items():
        tolerance = 0.1 if "bf16" in name else 1e-3
        assert (value - y["published"]).abs().max() <= tolerance * y["published"].abs().max(), name
    times = measure_in_turn(steps, repeats=20 if full else 10, most=120 if full else 6)
    header = ("case", "pairs", "merged", "way", "ms", "+-", "x published", "crystals/s")
    sizes = unmerged.num_pairs, merged.num_pairs
    case = f"{unmerged.num_crystals} crystals, {max_sites} sites"
    for name, t in times.items():
        ratio = times["published"].median / t.median
        rate = unmerged.num_crystals / t.median
        cells = (f"{t.median * 1e3:.1f}", f"{t.spread * 1e3:.1f}", f"{ratio:.1f}", f"{rate:.0f}")
        table("training step on Matbench", header, case, *sizes, name, *cells)


def random_crystal(sites, seed=0):
    """Sites anywhere: nothing merges."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * (15 * sites) ** (1 / 3)
    return Case(cell, rng.random((sites, 3)), rng.integers(1, 90, sites))


def train_once(sites, images, bf16):
    """A training step of this many sites, each with this many pairs."""
    crystals = [random_crystal(images, seed) for seed in range(-(-sites // images))]
    pairs = Pairs.batch([find_pairs(c) for c in crystals])
    stepper(paper_model(), pairs, bf16)()


def predict_once(sites):
    """A prediction of one crystal by rows."""
    model = paper_model()
    model.decode(model.encode_by_rows(PairFinder(random_crystal(sites), 0)))


def _report_peak(connection, function, arguments, threads):
    torch.set_num_threads(threads)
    function(*arguments)
    connection.send(peak_gigabytes())


def peak_memory(function, *arguments):
    """Most memory (GB resident, torch and Python included) that a new process took for a call."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(False)
    arguments = (there, function, arguments, torch.get_num_threads())
    process = context.Process(target=_report_peak, args=arguments)
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def test_memory(table, full):
    jobs = {
        "nothing": (len, ()),
        "training step, 1200 sites x 500": (train_once, 1200, 500, False),
    }
    if full:
        jobs["the same with bf16 products"] = train_once, 1200, 500, True
        jobs["prediction, 10,000 sites"] = predict_once, 10_000
    for name, job in jobs.items():
        table("peak memory (with torch)", ("job", "GB"), name, f"{peak_memory(*job):.2f}")
