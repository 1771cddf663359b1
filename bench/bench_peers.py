"""Beside other models that predict from crystal structures: cgcnn2, MEGNet and M3GNet of matgl, and
ALIGNN, each where it is installed (``pip install cgcnn2 matgl alignn``).

All read the same CIF texts of the Matbench sample and learn the same band gaps, each in a process
of its own, with the architecture and the graphs that its package has by default, or that its paper
has. Training is the same loop for all: batches of 64 crystals, mean absolute error of standardised
gaps, a learning rate that rises over a tenth of the given minutes and falls to 0 as a cosine;
AdamW at 1e-3 for the others, the optimiser of its config for sitenet. Minutes begin with the CIF
texts, so that who reads them faster learns longer. The clock is the time of the process on all its
threads, which a busy machine changes little. ``SITENET_PEER_MINUTES`` sets the minutes of
``--full``.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from cases import MATBENCH, matbench_texts, peak_gigabytes

from sitenet.config import TrainingConfig, load_config
from sitenet.training.optimizer import learning_rate

BATCH = 64
WARM_UP = 4  # crystals that are read and predicted before the clock starts


class Peer:
    """A model with its way from CIF text to predictions.

    Attributes:
        package: what must be installed.
        learning_rate: the highest.
    """

    package = "sitenet"
    learning_rate = 1e-3
    low_precision = False  # in training
    model: torch.nn.Module

    def read(self, text: str) -> Any:
        """What the model takes of one crystal."""
        raise NotImplementedError

    def store(self, inputs: list) -> Any:
        """All crystals, for ``batch`` to choose from."""
        return inputs

    def batch(self, store: Any, index: np.ndarray) -> Any:
        """Some crystals together."""
        raise NotImplementedError

    def output(self, batch: Any) -> torch.Tensor:
        """(crystals,) what the model says of them."""
        raise NotImplementedError

    def optimizer(self) -> Any:
        """Takes a step: ``step(learning_rate)``."""
        return _AdamW(self.model)


class _AdamW:
    def __init__(self, model: torch.nn.Module) -> None:
        self.optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-5)

    def step(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()


class Sitenet(Peer):
    """sitenet with a config that ships."""

    def __init__(self, config: str) -> None:
        from sitenet.model.sitenet import SiteNet
        from sitenet.pairs.maker import pair_options

        # Gaps are standardised here, so the last activation must let negative values pass.
        config = load_config(config).replace(last_activation="identity", missing="mean")
        self.learning_rate = config.training.learning_rate
        self.low_precision = config.training.precision == "bfloat16"
        self.model, self.options = SiteNet(config), pair_options(config)

    def read(self, text):
        from sitenet.crystal.crystal import read_cif
        from sitenet.pairs.columns import columns_of
        from sitenet.pairs.finder import find_pairs

        return columns_of(find_pairs(read_cif(text).primitive(), **self.options))

    def store(self, inputs):
        from sitenet.pairs.store import PairStore

        return PairStore.of(inputs)

    def batch(self, store, index):
        return store.batch(index)

    def output(self, batch):
        return self.model(batch).flatten()

    def optimizer(self):
        from sitenet.training.optimizer import Optimizer

        return Optimizer(self.model, self.model.config.training)


class Cgcnn(Peer):
    """CGCNN as published: 12 neighbours within 8 angstrom, 3 convolutions of width 64."""

    package = "cgcnn2"

    def __init__(self) -> None:
        import cgcnn2.data as data
        from cgcnn2.model import CrystalGraphConvNet

        self.data = data
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        initial = (Path(data.__file__).parent / "asset" / "atom_init.json").read_text()
        (root / "atom_init.json").write_text(initial)
        (root / "id_prop.csv").write_text("crystal,0\n")
        self.dataset = data.CIFData(self.folder.name, cache_size=0)  # one file, read anew
        self.model = CrystalGraphConvNet(92, len(self.dataset.gdf.filter))

    def read(self, text):
        Path(self.folder.name, "crystal.cif").write_text(text)
        return self.dataset[0]

    def batch(self, store, index):
        return self.data.collate_pool([store[i] for i in index])[0]

    def output(self, batch):
        return self.model(*batch)[0].flatten()


class Matgl(Peer):
    """A model of matgl with its default sizes."""

    package = "matgl"

    def __init__(self, name: str) -> None:
        import matgl.models
        from matgl.config import DEFAULT_ELEMENTS
        from matgl.ext.pymatgen import Structure2Graph
        from matgl.utils.training import ModelLightningModule
        from pymatgen.core import Structure

        self.structure = Structure
        model = getattr(matgl.models, name)()
        self.converter = Structure2Graph(DEFAULT_ELEMENTS, model.cutoff)
        self.model = ModelLightningModule(model)  # turns lattices into positions

    def read(self, text):
        graph, lattice, state = self.converter.get_graph(self.structure.from_str(text, "cif"))
        return graph, lattice, torch.tensor(state, dtype=torch.float32), {"gap": 0.0}

    def batch(self, store, index):
        from matgl.graph.data import collate_fn_graph

        return collate_fn_graph([store[i] for i in index])[:3]

    def output(self, batch):
        graph, lattice, state = batch
        return self.model(graph, lattice.reshape(-1, 3, 3), state_attr=state).reshape(-1)


class Alignn(Peer):
    """ALIGNN as published: 4 + 4 layers of width 256 over 12 neighbours within 8 angstrom."""

    package = "alignn"

    def __init__(self) -> None:
        from alignn.models.alignn_atomwise_pure import (
            ALIGNNAtomWisePure,
            ALIGNNAtomWisePureConfig,
        )
        from alignn.torch_graph_builder import batch_torch_graph_pairs, build_pure_torch_graph
        from jarvis.core.atoms import Atoms

        self.atoms, self.graph, self.join = Atoms, build_pure_torch_graph, batch_torch_graph_pairs
        config = ALIGNNAtomWisePureConfig(
            name="alignn_atomwise_pure",
            alignn_layers=4,
            gcn_layers=4,
            atom_input_features=92,
            hidden_features=256,
            calculate_gradient=False,
            energy_mult_natoms=False,
            use_penalty=False,
            lg_on_fly=False,
        )
        self.model = ALIGNNAtomWisePure(config)

    def read(self, text):
        atoms = self.atoms.from_cif(from_string=text, get_primitive_atoms=False, use_cif2cell=False)
        graph = self.graph(atoms, two_body_cutoff=8.0, max_neighbors=12)
        return *graph, torch.as_tensor(atoms.lattice_mat, dtype=torch.float32)

    def batch(self, store, index):
        chosen = [store[i] for i in index]
        pair = self.join([(graph, line_graph) for graph, line_graph, _ in chosen])
        return *pair, torch.stack([lattice for _, _, lattice in chosen])

    def output(self, batch):
        return self.model(batch)["out"].reshape(-1)


PEERS = {
    "sitenet, sphere": (Sitenet, "sphere"),
    "sitenet, paper": (Sitenet, "paper"),
    "CGCNN (cgcnn2)": (Cgcnn,),
    "MEGNet (matgl)": (Matgl, "MEGNet"),
    "M3GNet (matgl)": (Matgl, "M3GNet"),
    "ALIGNN (alignn)": (Alignn,),
}


@dataclass
class Job:
    """What each of them does: (crystals,) CIF texts with gaps, the last ``held`` ones to predict,
    and the seconds to learn the others in."""

    texts: list[str]
    gaps: np.ndarray
    held: int
    seconds: float


def predict(peer: Peer, store: Any, count: int) -> np.ndarray:
    """(crystals,) what it says of a store's crystals."""
    peer.model.eval()
    with torch.no_grad():
        y = [peer.output(peer.batch(store, i)) for i in _batches(np.arange(count))]
    return torch.cat(y).double().numpy()


def train(peer: Peer, store: Any, y: torch.Tensor, begin: float, seconds: float) -> int:
    """Learn until so many seconds after ``begin``, one batch at least; returns how many crystals
    were seen."""
    peer.model.train()
    optimizer, rng, seen = peer.optimizer(), np.random.default_rng(0), 0
    course = TrainingConfig(learning_rate=peer.learning_rate, schedule="cosine", warmup=0.1)
    while True:
        for index in _batches(rng.permutation(len(y)), least=2):  # batch norms need two
            done = min((time.process_time() - begin) / seconds, 1)
            with torch.autocast("cpu", torch.bfloat16, enabled=peer.low_precision):
                output = peer.output(peer.batch(store, index))
            (output.float() - y[index]).abs().mean().backward()
            torch.nn.utils.clip_grad_norm_(peer.model.parameters(), 1.0)
            optimizer.step(learning_rate(int(done * 10_000), 10_000, course))
            seen += len(index)
            if time.process_time() >= begin + seconds:
                return seen


def _batches(index: np.ndarray, least: int = 1) -> list[np.ndarray]:
    parts = [index[k : k + BATCH] for k in range(0, len(index), BATCH)]
    return [part for part in parts if len(part) >= least]


def measure(name: str, job: Job) -> dict[str, float]:
    """All figures of one model."""
    warnings.simplefilter("ignore")  # the packages' own
    make, *arguments = PEERS[name]
    peer = make(*arguments)
    start = [peer.read(text) for text in job.texts[:WARM_UP]]
    train(peer, peer.store(start), torch.zeros(WARM_UP), 0, 1e-3)  # also imports what it needs
    torch.manual_seed(0)
    peer = make(*arguments)
    together = predict(peer, peer.store(start), WARM_UP)
    alone = [predict(peer, peer.store([each]), 1)[0] for each in start]
    if not np.allclose(together, alone, rtol=1e-3, atol=1e-4):
        raise AssertionError(f"{name}: a batch predicts {together}, its crystals alone {alone}")
    clock = time.process_time

    learned, held = job.texts[: -job.held], job.texts[-job.held :]
    t = [clock()]
    inputs = [peer.read(text) for text in held]
    t.append(clock())
    test = peer.store(inputs)
    predict(peer, test, job.held)
    t.append(clock())

    begin = clock()
    store = peer.store([peer.read(text) for text in learned])
    read = clock()
    y = torch.as_tensor(job.gaps, dtype=torch.float32)
    mean, std = y[: -job.held].mean(), y[: -job.held].std()
    seen = train(peer, store, (y[: -job.held] - mean) / std, begin, job.seconds)
    rate = seen / (clock() - read)
    predicted = predict(peer, test, job.held) * std.item() + mean.item()
    error = np.abs(np.maximum(predicted, 0) - job.gaps[-job.held :])
    return {
        "parameters": sum(p.numel() for p in peer.model.parameters()),
        "read": job.held / (t[1] - t[0]),
        "predict": job.held / (t[2] - t[1]),
        "both": job.held / (t[2] - t[0]),
        "train": rate,
        "epochs": seen / len(learned),
        "mae": float(error.mean()),
        "gigabytes": peak_gigabytes(),
    }


def _report(connection: Any, name: str, job: Job, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        connection.send(measure(name, job))
    except Exception as error:  # of any package: the table says what
        connection.send(f"{type(error).__name__}: {error}")


def in_own_process(name: str, job: Job, threads: int) -> dict[str, float] | str:
    """The figures of one model, or why there are none."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(False)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    process = context.Process(target=_report, args=(there, name, job, threads))
    process.start()
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


HEADER = (
    "model",
    "parameters",
    "CIF to input/s",
    "predicted/s",
    "CIF to prediction/s",
    "trained/s",
    "epochs",
    "MAE (eV)",
    "GB",
)


@pytest.mark.parametrize("name", PEERS)
def test_peer(name, table, full, threads):
    """Reading, prediction and training rates, error after equal time, peak memory."""
    package = PEERS[name][0].package
    others = {make.package for make, *_ in PEERS.values()} - {"sitenet"}
    missing = {package for package in others if importlib.util.find_spec(package) is None}
    if package in missing:
        pytest.skip(f"{package} is not installed")
    if missing == others:
        pytest.skip(f"none of {', '.join(sorted(others))} is installed")
    count, held = (1000, 250) if full else (48, 16)
    minutes = float(os.environ.get("SITENET_PEER_MINUTES", 2))
    seconds = 60 * minutes if full else 0.5
    texts = matbench_texts(count + held)
    gaps = parquet.read_table(MATBENCH, columns=["band_gap_eV"])["band_gap_eV"].to_numpy()
    results = in_own_process(name, Job(texts, gaps[: len(texts)], held, seconds), threads)
    assert isinstance(results, dict), results
    cells = (
        f"{results['parameters']:,}",
        *(f"{results[key]:.0f}" for key in ("read", "predict", "both", "train")),
        f"{results['epochs']:.1f}",
        f"{results['mae']:.3f}",
        f"{results['gigabytes']:.2f}",
    )
    mean = np.abs(gaps[count : count + held] - gaps[:count].mean()).mean()
    title = (
        f"other models: {seconds / 60:.3g} minutes of processor time for {count} crystals, {held} "
        f"others predicted (error of the mean: {mean:.3f} eV)"
    )
    table(title, HEADER, name, *cells)
