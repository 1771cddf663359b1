"""The embedded example: its files are what its script writes, and they are sound crystals."""

import csv
import importlib.util
import pathlib
import warnings

import gemmi
import numpy as np
import pytest
import spglib

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "semiconductors"


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make", EXAMPLE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(make):
    return {f"{row.formula}_{row.structure}": row for row in make.read_rows()}


def test_the_script_writes_these_files(make, tmp_path):
    make.main(tmp_path)
    here = {path.name: path.read_bytes() for path in EXAMPLE.glob("*.c*")}
    there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert here == there


def test_the_table_is_large_varied_and_sourced(make, rows):
    assert len(rows) >= 120
    assert {row.structure for row in rows.values()} == make.STRUCTURES.keys()
    used = {key for row in rows.values() for key in (row.cell_source, row.gap_source)}
    assert used == make.SOURCES.keys()
    assert sum(float(row.gap) == 0 for row in rows.values()) >= len(rows) / 5


def test_targets_match_the_files(rows):
    with open(EXAMPLE / "targets.csv", newline="") as file:
        targets = {row["id"]: row["band_gap_eV"] for row in csv.DictReader(file)}
    assert targets == {name: row.gap for name, row in rows.items()}
    assert targets.keys() == {path.stem for path in EXAMPLE.glob("*.cif")}
    assert all(0 <= float(gap) < 14 for gap in targets.values())


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
def test_cells_have_the_declared_symmetry_and_sound_distances(make, rows):
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3)
    for name, row in rows.items():
        small = gemmi.read_small_structure(str(EXAMPLE / f"{name}.cif"))
        sites = small.get_all_unit_cell_sites()
        frac = np.array([site.fract.tolist() for site in sites])
        numbers = [site.element.atomic_number for site in sites]
        cell = np.array(small.cell.orth.mat.tolist()).T
        group = gemmi.find_spacegroup_by_name(make.STRUCTURES[row.structure][0]).number
        assert spglib.get_symmetry_dataset((cell, frac, numbers), symprec=1e-3).number == group, (
            name
        )

        elements = make.elements_of(row.formula)
        units = len(sites) / sum(elements.values())
        counts = {e: sum(site.element.name == e for site in sites) / units for e in elements}
        assert counts == elements, name

        difference = frac[:, None] - frac
        difference -= np.round(difference)
        distance = np.linalg.norm((difference[:, :, None] + shifts) @ cell, axis=-1)
        shortest = distance[distance > 1e-6].min()
        assert 1.3 < shortest < 4.7, name
        assert 5 < small.cell.volume / len(sites) < 80, name


@pytest.mark.slow
def test_pymatgen_reads_the_same_cells(rows):
    core = pytest.importorskip("pymatgen.core")
    for name, row in rows.items():
        path = EXAMPLE / f"{name}.cif"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells that it rounds 0.333333 to 1/3
            structure = core.Structure.from_file(path)
        assert structure.composition.reduced_composition == core.Composition(row.formula), name
        assert len(structure) == len(
            gemmi.read_small_structure(str(path)).get_all_unit_cell_sites()
        ), name
