"""Count what a captured training step starts: the operations of torch that are no views, by part.

    python bench/count_operations.py [CONFIG ...]

Works without a GPU: the step runs on the CPU as it would on a GPU, Muon's batches included. An op
of sitenet counts once; ``KERNELS`` has what it starts on a GPU. In bfloat16, casts count too.
"""

from __future__ import annotations

import collections
import functools
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cases"))
from toy_crystals import toy_dataset
from trainers import padded, trainer_of

from sitenet.config import load_config
from sitenet.ops import block_weights, pair_inputs, site_terms
from sitenet.training import gradients, muon

# Kernels of an op on a GPU. Sorting takes some eight.
KERNELS = {
    "sitenet::attention_forward": 3,
    "sitenet::attention_backward": 8,
    "sitenet::pair_embedding_backward": 2,
    "sitenet::power_spectrum_forward": 2,
    "sitenet::power_spectrum_backward": 5,
    "sitenet::padded_batch": 2,
    "sitenet::site_terms_forward": 3,
    "sitenet::site_terms_backward": 7,
}
LISTS_BY_SITE = 10  # kernels that list pairs, or images, by site; only a GPU needs the lists
NO_KERNEL = ("empty", "detach", "_unsafe_view", "alias", "scalar_tensor", "new_empty")


class Count(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        views = any(a.alias_info and not a.alias_info.is_write for a in func._schema.arguments)
        short = name.removeprefix("aten::")
        if not (views or name.startswith("profiler::") or short.startswith(NO_KERNEL)):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self):
        return sum(self.counts.values())


def counted(function, counts, title):
    """The function, which leaves its operations in ``counts[title]``."""

    @functools.wraps(function)
    def call(*arguments):
        with Count() as count:
            result = function(*arguments)
        counts[title] = count
        return result

    return call


def count(name, precision):
    """Print the operations of a step of a config."""
    config = load_config(name).replace(precision=precision, batch_crystals=8, batch_sites=0)
    trainer = padded(trainer_of(config, toy_dataset(24)))
    trainer.train_epoch()  # makes the optimiser's state
    parts = {}
    store, optimizer = trainer.data.store, trainer.optimizer
    store.padded_batch = counted(store.padded_batch, parts, "batch")
    optimizer.step = counted(optimizer.step, parts, "optimiser")
    counted(trainer.take_step, parts, "step")(trainer.batches_of_steps(2)[0])
    ops = parts["step"].counts
    kernels = parts["step"].total + sum((KERNELS.get(k, 1) - 1) * n for k, n in ops.items())
    kernels += LISTS_BY_SITE * (2 if config.spectrum_channels else 1)
    listed = ", ".join(f"{title} {part.total}" for title, part in parts.items() if title != "step")
    print(f"{name}, {precision}: {parts['step'].total} operations ({listed}), {kernels} kernels")


if __name__ == "__main__":
    muon.OVERHEAD["cpu"] = muon.OVERHEAD["cuda"]
    gradients.multiplies_bfloat16 = lambda device: True
    for family in (block_weights, pair_inputs, site_terms, gradients):
        family.fuses = lambda x: True
    torch.set_num_threads(1)
    for each in sys.argv[1:] or ("paper", "sphere", "density"):
        for kind in ("float32", "bfloat16"):
            count(each, kind)
