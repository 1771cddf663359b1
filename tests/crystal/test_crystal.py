"""Crystals: construction, primitive cells, and exchange with pymatgen and ASE."""

import pickle
import time
import warnings

import numpy as np
import pytest
from cases import matbench_texts
from cif_texts import MIXED, WITH_OCCUPANCY, cif
from conftest import ROOT

import sitenet
from sitenet import CifError, Crystal, read_cif

EXAMPLES = ROOT / "examples" / "semiconductors"


# ---------------------------------------------------------------------------------------------
# Crystal


def test_a_crystal_holds_arrays():
    crystal = Crystal(np.eye(3, dtype=np.float32) * 4, [[0, 0, 0], [0.5, 0.5, 1.5]], [55, 17])
    assert crystal.cell.dtype == crystal.frac.dtype == np.float64
    assert crystal.numbers.dtype == np.int64
    assert len(crystal) == 2
    assert crystal.volume == pytest.approx(64)
    assert crystal.frac[1, 2] == 1.5  # as given
    assert repr(crystal) == ("Crystal(CsCl, 2 sites, a=4 b=4 c=4 A, alpha=90 beta=90 gamma=90)")


def test_formulas():
    crystal = Crystal(np.eye(3) * 9, np.random.rand(6, 3), [17, 11, 17, 11, 17, 11])
    assert (crystal.formula, crystal.reduced_formula) == ("Na3Cl3", "NaCl")
    mixed = Crystal(np.eye(3) * 9, np.zeros((2, 3)), [26, 12], occupancy=[0.25, 0.75])
    assert mixed.formula == mixed.reduced_formula == "Mg0.75Fe0.25"


def test_site_labels():
    crystal = Crystal(np.eye(3) * 5, [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17])
    assert crystal.site_labels() == ["Cs", "Cl"] and crystal.site_label(1) == "Cl"
    frac = [[0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0], [0, 0, 0]]
    mixed = Crystal(np.eye(3) * 5, frac, [78, 8, 26, 28], None, [0.25, 0.9, 0.5, 0.25])
    assert mixed.site_labels() == ["Fe0.5Ni0.25Pt0.25", "O0.9Vac0.1"]
    assert [mixed.site_label(site) for site in range(2)] == mixed.site_labels()
    charges = Crystal(np.eye(3) * 5, np.zeros((2, 3)), [26, 26], [2, 3], [0.5, 0.5])
    assert charges.site_label(0) == "Fe"  # of two charges


def test_warnings_stay_with_the_crystal():
    crystal = Crystal(np.eye(3) * 4, [[0, 0, 0]], [26], warnings=("no H is listed",))
    double = crystal.supercell(2)
    assert len(double) == 2 and double.warnings == double.primitive().warnings == crystal.warnings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": np.eye(2)}, r"cell must have shape \(3, 3\), got \(2, 2\)"),
        ({"cell": np.ones((3, 3))}, "cell must have a volume"),
        ({"cell": np.full((3, 3), np.nan)}, "cell must be finite"),
        ({"frac": np.zeros((3, 3))}, r"frac must have shape \(num_sites, 3\), got \(3, 3\)"),
        ({"frac": [[0, 0, np.inf], [0, 0, 0]]}, "frac must be finite"),
        ({"numbers": [11, 0]}, "atomic numbers from 1 to 118"),
        ({"numbers": [11.0, 17.0]}, "atomic numbers from 1 to 118"),
        ({"numbers": []}, r"numbers must have shape \(num_sites,\)"),
        ({"oxidation": [1]}, r"oxidation must have shape \(2,\), got \(1,\)"),
        ({"occupancy": [1, 0]}, "occupancy must be above 0 and at most 1"),
    ],
)
def test_what_is_no_crystal_is_refused(change, message):
    good = {"cell": np.eye(3) * 4, "frac": np.zeros((2, 3)), "numbers": [11, 17]}
    with pytest.raises(ValueError, match=message):
        Crystal(**good | change)


def test_pickling():
    crystal = read_cif(cif())
    copy = pickle.loads(pickle.dumps(crystal))
    assert np.array_equal(copy.frac, crystal.frac) and copy.name == "NaCl"
    error = pickle.loads(pickle.dumps(CifError("a.cif", "x", "no sites")))
    assert (str(error), error.block) == ("a.cif, data_x: no sites", "x")


# ---------------------------------------------------------------------------------------------
# Primitive cells


def test_primitive_cells_are_reduced():
    crystal = read_cif(cif("Na1 Na+ 0 0 0\nCl1 Cl- 0.5 0.5 0.5"))
    primitive = crystal.primitive()
    assert sorted(zip(primitive.numbers, primitive.oxidation, strict=True)) == [(11, 1), (17, -1)]
    assert primitive.volume == pytest.approx(crystal.volume / 4)
    np.testing.assert_allclose(np.linalg.norm(primitive.cell, axis=1), 5.64 / 2**0.5)
    assert primitive.name == "NaCl"
    assert primitive.primitive() is primitive


@pytest.mark.parametrize("changed", ["oxidation", "occupancy"])
def test_sites_of_other_charge_or_occupancy_are_other_sites(changed):
    cell, frac = np.diag([4.0, 4, 8]), np.array([[0, 0, 0], [0, 0, 0.5]])
    assert len(Crystal(cell, frac, [26, 26]).primitive()) == 1
    different = Crystal(cell, frac, [26, 26], **{changed: np.array([0.5, 1.0])})
    assert len(different.primitive()) == 2
    same = Crystal(cell, frac, [26, 26], **{changed: np.array([0.5, 0.5])})
    assert getattr(same.primitive(), changed).tolist() == [0.5]


def test_primitive_cell_of_a_distorted_crystal():
    """Within the tolerance the sites are averaged; beyond it, the cell stays."""
    cell, frac = np.diag([4.0, 4, 8]), np.array([[0, 0, 0], [0, 0, 0.5], [0.5, 0.5, 0.2]])
    frac = np.vstack([frac, [0.5, 0.5, 0.7 + 0.004 / 8]])
    crystal = Crystal(cell, frac, [26, 26, 8, 8])
    assert len(crystal.primitive()) == 2
    assert crystal.primitive(tolerance=0.001) is crystal
    with pytest.raises(ValueError, match="method must be 'spglib' or 'pymatgen', got 'phonopy'"):
        crystal.primitive(method="phonopy")


def test_primitive_cells_have_the_distances_of_their_crystals():
    """Neighbours within 4 A, and their distances, a site."""
    for path in sorted(EXAMPLES.glob("*.cif"))[::8]:
        crystal = read_cif(path)
        found = []
        for c in (crystal, crystal.primitive()):
            pairs = sitenet.find_pairs(c, images="sphere", radius=4.03, merge=False)
            found.append((pairs.num_pairs / len(c), pairs.distance.sum().item() / len(c)))
        assert found[0] == pytest.approx(found[1], rel=1e-5), path.name


def test_large_cells_are_reduced_in_time():
    """16 x 16 x 2 copies of a cell, in any order, of one element and of several."""
    grid = np.stack(np.meshgrid(*map(np.arange, (16, 16, 2)), indexing="ij"), -1).reshape(-1, 3)
    frac = np.concatenate([grid + offset for offset in ([0, 0, 0], [0.5, 0.4, 0.3])]) / [16, 16, 2]
    order = np.random.default_rng(0).permutation(len(frac))
    for numbers in (np.full(len(frac), 6), np.repeat([5, 7], len(grid))):
        crystal = Crystal(np.diag([48.0, 64, 8]), frac[order], numbers[order])
        since = time.process_time()
        assert len(crystal.primitive()) == 2
        assert time.process_time() - since < 5
    shaken = crystal.frac + np.random.default_rng(1).normal(0, 1e-3, frac.shape)
    assert len(Crystal(crystal.cell, shaken, crystal.numbers).primitive()) == len(crystal)


def test_pymatgen_finds_the_same_primitive_cells():
    pytest.importorskip("pymatgen.core")
    for path in sorted(EXAMPLES.glob("*.cif"))[::8]:
        crystal = read_cif(path)
        ours, theirs = crystal.primitive(), crystal.primitive(method="pymatgen")
        assert len(ours) == len(theirs), path.name
        np.testing.assert_allclose(ours.cell @ ours.cell.T, theirs.cell @ theirs.cell.T, atol=1e-3)


# ---------------------------------------------------------------------------------------------
# pymatgen and ASE


def assert_equal(a, b):
    np.testing.assert_allclose(a.cell, b.cell, atol=1e-12)
    np.testing.assert_allclose(a.frac, b.frac, atol=1e-12)
    assert a.numbers.tolist() == b.numbers.tolist()
    for x, y in ((a.oxidation, b.oxidation), (a.occupancy, b.occupancy)):
        assert (x is None and y is None) or np.array_equal(x, y)


@pytest.mark.parametrize(
    "sites", ["Na1 Na 0 0 0\nCl1 Cl .5 .5 .5", "Na1 Na+ 0 0 0\nCl1 Cl- .5 .5 .5"]
)
def test_to_pymatgen_and_back(sites):
    pytest.importorskip("pymatgen.core")
    crystal = read_cif(cif(sites))
    assert_equal(Crystal.from_pymatgen(crystal.to_pymatgen()), crystal)


def test_disorder_to_pymatgen_and_back():
    pytest.importorskip("pymatgen.core")
    crystal = read_cif(cif(MIXED, tags=WITH_OCCUPANCY), disorder="average")
    structure = crystal.to_pymatgen()
    assert len(structure) == 8 and not structure.is_ordered
    with pytest.raises(ValueError, match='disorder="average"'):
        Crystal.from_pymatgen(structure)
    back = Crystal.from_pymatgen(structure, disorder="average")
    assert back.formula == crystal.formula
    assert sorted(back.occupancy) == sorted(crystal.occupancy)


def test_dummies_of_pymatgen_are_refused():
    core = pytest.importorskip("pymatgen.core")
    structure = core.Structure(core.Lattice.cubic(4), [core.DummySpecies("X")], [[0, 0, 0]])
    with pytest.raises(ValueError, match="unknown element X"):
        Crystal.from_pymatgen(structure)


def test_to_ase_and_back():
    pytest.importorskip("ase")
    crystal = read_cif(cif())
    atoms = crystal.to_ase()
    assert atoms.pbc.all() and atoms.get_chemical_formula() == "Cl4Na4"
    assert_equal(Crystal.from_ase(atoms), crystal)
    mixed = read_cif(cif(MIXED, tags=WITH_OCCUPANCY), disorder="average")
    with pytest.raises(ValueError, match="no partial occupancy"):
        mixed.to_ase()
    atoms.info["occupancy"] = {"0": {"Na": 0.5, "K": 0.5}}
    with pytest.raises(ValueError, match="partial occupancy"):
        Crystal.from_ase(atoms)
    del atoms.info["occupancy"]
    atoms.cell[2] = 0
    with pytest.raises(ValueError, match="cell must have a volume"):
        Crystal.from_ase(atoms)


def test_pymatgen_reads_the_same_matbench_crystals():
    core = pytest.importorskip("pymatgen.core")
    for text in matbench_texts(10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells that it rounds 0.333333 to 1/3
            theirs = core.Structure.from_str(text, "cif")
        ours = read_cif(text)
        np.testing.assert_allclose(ours.cell, theirs.lattice.matrix, atol=1e-9)
        theirs = Crystal.from_pymatgen(theirs)
        assert sorted(ours.numbers) == sorted(theirs.numbers)
        np.testing.assert_allclose(
            np.sort(ours.frac % 1, 0), np.sort(theirs.frac % 1, 0), atol=2e-5
        )


def test_structures_of_the_wrong_kind_are_refused_by_name():
    core = pytest.importorskip("pymatgen.core")
    ase = pytest.importorskip("ase")
    structure = core.Structure(core.Lattice.cubic(4), ["Cs", "Cl"], [[0, 0, 0], [0.5] * 3])
    atoms = Crystal.from_pymatgen(structure).to_ase()
    molecule = core.Molecule(["H", "H"], [[0, 0, 0], [0, 0, 0.7]])
    for wrong in (atoms, molecule, structure.as_dict(), b"data_x", [structure], None):
        with pytest.raises(TypeError, match=f"a pymatgen Structure, got {type(wrong).__name__}"):
            Crystal.from_pymatgen(wrong)
    for wrong in (structure, molecule, structure.as_dict(), b"data_x", [atoms], None):
        with pytest.raises(TypeError, match=f"ASE Atoms, got {type(wrong).__name__}"):
            Crystal.from_ase(wrong)
    with pytest.raises(TypeError, match=r"which Crystal\.from_ase converts"):
        Crystal.from_pymatgen(atoms)
    with pytest.raises(TypeError, match="which has no cell"):
        Crystal.from_pymatgen(molecule)
    with pytest.raises(ValueError, match=r"unknown element X \(atom 1\)"):
        Crystal.from_ase(ase.Atoms("HX", cell=[4, 4, 4]))
    with pytest.raises(ValueError, match="hold no atom"):
        Crystal.from_ase(ase.Atoms(cell=[4, 4, 4]))
    with pytest.raises(TypeError, match="expected a path, CIF text or its bytes, got dict"):
        read_cif(structure.as_dict())


def test_atoms_of_pymatgen_are_atoms():
    """Its MSONAtoms are derived from those of ASE."""
    adaptor = pytest.importorskip("pymatgen.io.ase").AseAtomsAdaptor
    crystal = read_cif(cif())
    atoms = adaptor.get_atoms(crystal.to_pymatgen())
    assert type(atoms).__name__ == "MSONAtoms"
    assert_equal(Crystal.from_ase(atoms), crystal)
