"""Prediction from Python: any structure, one or many, however it is computed."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_crystals import SMALL, cif_of, toy_crystals

from sitenet.config import InteractionFeature
from sitenet.crystal.cif import CifError
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.elements import SYMBOLS
from sitenet.inference.predict import outputs, pair_batches
from sitenet.inference.structures import as_crystal, is_single
from sitenet.model.sitenet import SiteNet, Target
from sitenet.pairs.maker import PairMaker
from sitenet.pairs.store import PairStore

module = importlib.import_module("sitenet.inference.predict")
CRYSTALS = toy_crystals(9)
TARGET = Target("a", "eV")


def model_of(config=SMALL, targets=(TARGET,)):
    torch.manual_seed(0)
    config = config.replace(last_activation="identity", scale_site_features=True, norm="none")
    model = SiteNet(config.replace(post_pool_norm="none"), targets).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:  # larger than usual, so that crystals differ
            torch.nn.init.normal_(parameter, std=2 / parameter.shape[1] ** 0.5)
    return model


MODEL = model_of()
Y = MODEL.predict(CRYSTALS)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_a_batch_is_its_crystals_one_by_one():
    assert Y.shape == (9,) and Y.dtype == np.float64 and Y.std() > 0.1
    np.testing.assert_allclose(Y, [MODEL.predict(c)[0] for c in CRYSTALS], **CLOSE)
    np.testing.assert_allclose(Y[::-1], MODEL.predict(CRYSTALS[::-1]), **CLOSE)


@pytest.mark.parametrize(
    ("name", "size"), [("CHUNK", 2), ("CHUNK_PAIRS", 100), ("BATCH_PAIRS", 60), ("BATCH_PAIRS", 1)]
)
def test_parts_do_not_matter(monkeypatch, name, size):
    monkeypatch.setattr(module, name, size)
    np.testing.assert_allclose(MODEL.predict(CRYSTALS), Y, **CLOSE)


def test_merged_is_unmerged():
    np.testing.assert_allclose(MODEL.predict(CRYSTALS, merge=False), Y, **CLOSE)
    np.testing.assert_allclose(model_of(SMALL.replace(merge=False)).predict(CRYSTALS), Y, **CLOSE)


def test_the_largest_supercell_is_that_of_the_config_or_another():
    larger = MODEL.predict(CRYSTALS, max_sites=40)
    assert np.abs(larger - Y).max() > 1e-2
    np.testing.assert_array_equal(model_of(SMALL.replace(max_sites=40)).predict(CRYSTALS), larger)
    np.testing.assert_array_equal(MODEL.predict(CRYSTALS, max_sites=12), Y)
    cell = MODEL.predict(CRYSTALS, max_sites=0)
    np.testing.assert_array_equal(cell, MODEL.predict(CRYSTALS, max_sites=1))


def test_cells_are_made_primitive_unless_they_are_to_stay():
    crystal = next(c for c in CRYSTALS if len(c) == 2)
    double = crystal.supercell(4)
    assert len(double) == 4
    assert MODEL.predict(double) == pytest.approx(MODEL.predict(crystal), abs=1e-5)
    whole = MODEL.predict(double, primitive=False, max_sites=0)
    assert whole == pytest.approx(MODEL.predict(crystal, max_sites=4), abs=1e-5)


@pytest.mark.parametrize("merge", [True, False])
def test_a_large_crystal_goes_by_rows_and_gives_the_same(monkeypatch, merge):
    want = MODEL.predict(CRYSTALS, merge=merge)
    by_rows = []
    original = SiteNet.encode_by_rows

    def noted(self, finder, max_pairs=20):
        by_rows.append(finder)
        return original(self, finder, max_pairs)

    monkeypatch.setattr(SiteNet, "encode_by_rows", noted)
    monkeypatch.setattr(module, "MOST_PAIRS", 30)
    np.testing.assert_allclose(MODEL.predict(CRYSTALS, merge=merge), want, **CLOSE)
    assert 0 < len(by_rows) < len(CRYSTALS)


def test_spheres_and_other_features_are_found_as_the_config_asks():
    features = InteractionFeature("distance_matrix"), InteractionFeature("coulomb_matrix", log=True)
    for changes in ({"images": "sphere", "radius": 4.0}, {"interaction_features": features}):
        y = model_of(SMALL.replace(**changes)).predict(CRYSTALS)
        assert np.isfinite(y).all() and y.std() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_kind_of_structure_is_taken(tmp_path):
    crystal = CRYSTALS[0]
    path = tmp_path / "c0.cif"
    path.write_text(cif_of(crystal))
    kinds = [crystal, path, str(path), cif_of(crystal), cif_of(crystal).encode()]
    symbols = [SYMBOLS[number] for number in crystal.numbers]
    jarvis = {"lattice_mat": crystal.cell, "coords": crystal.frac, "elements": symbols}
    kinds.append(jarvis)
    pytest.importorskip("pymatgen.core")
    structure = crystal.to_pymatgen()
    kinds += [structure, structure.as_dict(), structure.as_dict(verbosity=0)]
    pytest.importorskip("ase")
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from pymatgen.io.ase import AseAtomsAdaptor

    entry = ComputedStructureEntry(structure, -1.0)
    document = SimpleNamespace(material_id="mp-1", structure=structure)  # as mp-api gives it
    kinds += [entry, entry.as_dict(), document]
    atoms = crystal.to_ase()
    mson = AseAtomsAdaptor.get_atoms(structure)
    assert type(mson).__name__ == "MSONAtoms"
    kinds += [atoms, mson]
    for structure in kinds:
        assert MODEL.predict(structure) == pytest.approx(Y[:1], abs=1e-4), type(structure)
    y = MODEL.predict(kinds)
    assert y == pytest.approx(np.full(len(kinds), Y[0]), abs=1e-4)
    assert MODEL.predict(iter(kinds)) == pytest.approx(y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_objects_are_refused_by_name():
    pytest.importorskip("pymatgen.core")
    from pymatgen.core import Composition, Lattice, Molecule
    from pymatgen.entries.computed_entries import ComputedEntry

    water = Molecule(["O", "H", "H"], [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    for wrong, message in (
        (water, "got Molecule, which has no cell"),
        (water.as_dict(), "got the dict of a Molecule, .*get_boxed_structure"),
        (ComputedEntry("NaCl", -1.0), "got ComputedEntry, .*give a ComputedStructureEntry"),
        ([CRYSTALS[0]], "got a list of several: give its structures one by one"),
        (Composition("NaCl"), "got Composition"),
        (Lattice.cubic(3), "got Lattice"),
        ({"a": 1}, "got a dict without lattice and sites; its keys are 'a'"),
        ({}, "its keys are none"),
        (None, "got NoneType"),
        (1.5, "got float"),
    ):
        with pytest.raises(TypeError, match=f"expected a Crystal, .*{message}"):
            as_crystal(wrong)
        with pytest.raises(TypeError, match=f"structure 1: .*{message}"):
            MODEL.predict([CRYSTALS[0], wrong])
    assert is_single(water) and is_single({}) and is_single(b"data_x")
    assert not is_single([water]) and not is_single(iter([])) and not is_single(np.array([]))
    with pytest.raises(CifError, match="structure 0: "):
        MODEL.predict(b"data_x\n")


def test_no_structures_give_no_values():
    assert MODEL.predict([]).shape == (0,)
    assert model_of(targets=[Target("a"), Target("b")]).predict([]).shape == (0, 2)


def test_several_targets_and_classes():
    model = model_of(targets=[Target("a", "eV", 5.0, 2.0), Target("b", kind="class")])
    y = model.predict(CRYSTALS)
    assert y.shape == (9, 2)
    logits = model_of(targets=[Target("a"), Target("b")]).predict(CRYSTALS)
    np.testing.assert_allclose(y[:, 0], logits[:, 0] * 2 + 5, **CLOSE)
    np.testing.assert_allclose(y[:, 1], 1 / (1 + np.exp(-logits[:, 1])), **CLOSE)


def test_prediction_leaves_the_model_as_it_was():
    model = model_of().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    np.testing.assert_array_equal(model.predict(CRYSTALS), Y)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_cannot_be_used_is_named_with_its_place(tmp_path):
    good = CRYSTALS[0]
    bad = Crystal(np.eye(3) * 4, [[0, 0, 0]] * 2, [8, 8], name="twice")
    xenon = Crystal(np.eye(3) * 4, [[0, 0, 0]], [54])
    for structure, kind, message in (
        (bad, ValueError, r"structure 1 \(twice\): two sites are in one place"),
        (xenon, ValueError, r"structure 1 \(Xe\): .* of Xe is not known"),
        ("data_x\n", CifError, "structure 1: CIF text, data_x: "),
        (7, TypeError, "structure 1: expected a Crystal, .* got int"),
        (tmp_path / "no.cif", FileNotFoundError, r"no\.cif"),
    ):
        with pytest.raises(kind, match=message):
            MODEL.predict([good, structure])
    with pytest.raises(TypeError, match="structure 0: expected a Crystal"):
        MODEL.predict(7)


def test_a_large_crystal_with_an_unknown_element_is_refused_too(monkeypatch):
    monkeypatch.setattr(module, "MOST_PAIRS", 0)
    with pytest.raises(ValueError, match="of Xe is not known"):
        MODEL.predict(Crystal(np.eye(3) * 4, [[0, 0, 0]], [54]))


def test_disorder_is_refused_or_averaged():
    pytest.importorskip("pymatgen.core")
    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "O"], [[0, 0, 0], [0.5] * 3])
    with pytest.raises(ValueError, match="structure 0: partial occupancy"):
        MODEL.predict(structure)
    assert np.isfinite(MODEL.predict(structure, disorder="average")).all()
    assert as_crystal(structure, "average").occupancy.tolist() == [0.5, 0.5, 1]


def test_encodings_come_with_the_values():
    found = list(outputs(MODEL, CRYSTALS))
    np.testing.assert_allclose([y[0] for y, _ in found], Y, **CLOSE)
    assert {e.shape for _, e in found} == {(SMALL.post_pool[-1],)}


def test_batches_hold_as_many_pairs_as_fit(monkeypatch):
    make = PairMaker(SMALL)
    store = PairStore.of([make(c) for c in CRYSTALS])
    monkeypatch.setattr(module, "BATCH_PAIRS", 60)
    index = np.array([4, 0, 8, 1, 2, 3])
    parts = list(pair_batches(store, index))
    assert np.concatenate(parts).tolist() == index.tolist() and len(parts) > 1
    totals = [store.num_pairs[p].sum() for p in parts]
    assert all(t <= 60 or len(p) == 1 for t, p in zip(totals, parts, strict=True))
    assert list(pair_batches(store, index[:0])) == []


def test_it_runs_on_every_device(device):
    np.testing.assert_allclose(model_of().to(device).predict(CRYSTALS), Y, rtol=1e-4, atol=1e-4)


def test_memory_that_is_full_is_told(monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PairStore, "batch", out_of_memory)
    with pytest.raises(RuntimeError, match=r"^out of GPU memory with \d+ pairs of \d+ crystals; "):
        MODEL.predict(CRYSTALS)
