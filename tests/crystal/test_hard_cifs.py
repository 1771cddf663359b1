"""Difficult real files, from the folder that SITENET_HARD_CIFS names: read right, or refused."""

import csv
import os
import time
from pathlib import Path

import gemmi
import numpy as np
import pytest
from conftest import SHARED

from sitenet import CifError, read_cif, read_cifs

FOLDER = Path(os.environ.get("SITENET_HARD_CIFS", SHARED / "data" / "hard_cifs"))
MANIFEST = FOLDER / "manifest.csv"
ROWS = list(csv.DictReader(MANIFEST.read_text().splitlines())) if MANIFEST.exists() else []
EXPECTED = {row["file"]: int(row["n_sites_expected"] or 0) for row in ROWS}
PATHS = sorted(path for path in FOLDER.glob("*cif") if path.is_file())
pytestmark = pytest.mark.skipif(not PATHS, reason=f"no files in {FOLDER}")
each_file = pytest.mark.parametrize("path", PATHS or [None], ids=lambda p: getattr(p, "name", ""))

# Where the count differs from what other programs agree on, and why this one is right.
OURS = {
    "codtools__1010246.cif": (16, "two hydrogens are dummies, at no place, flagged `dum`"),
    "codtools__2208311-zero-occupancies.cif": (96, "a ring's centre has occupancy 0"),
    "dans__Ca3CoMnO6.mcif": (66, "the operations are magnetic ones, which the others pass over"),
    "dans__Sr3LiRuO6_C2'c'.mcif": (66, "likewise"),
    "pymatgen__magnetic.ncl.example.GdB4.mcif": (20, "likewise"),
}
# What is refused though others read it, and why.
REFUSED = {
    "codtools__2000488-reset-limits.cif": "unknown element 'X'",  # they count it as an atom
    "jarvis__mock.cif": "Cartesian coordinates only",  # they take them for fractional ones
}


@each_file
@pytest.mark.parametrize("disorder", ["error", "average"])
def test_read_or_refused(path, disorder):
    since = time.monotonic()
    try:
        crystals = read_cifs(path, disorder=disorder)
    except CifError as error:
        assert error.file == str(path) and error.reason
        crystals = []
    assert time.monotonic() - since < 10
    for crystal in crystals:
        assert np.isfinite(crystal.cell).all() and np.isfinite(crystal.frac).all()
        assert ((crystal.frac >= 0) & (crystal.frac < 1)).all()
        assert crystal.volume > len(np.unique(crystal.frac, axis=0)), crystal


@each_file
def test_the_count_of_sites(path):
    """As others agree; with disorder, rows or positions are counted differently by everyone."""
    expected = EXPECTED.get(path.name)
    if not expected:
        pytest.skip("other programs do not agree on a count")
    try:
        crystal = read_cif(path)
    except CifError as error:
        if "partial occupancy" not in error.reason:
            assert REFUSED[path.name] in error.reason
            return
        crystal = read_cif(path, disorder="average")
        places = len(np.unique(crystal.frac, axis=0))
        assert places <= expected or len(crystal) <= expected
        assert min(abs(places - expected), abs(len(crystal) - expected)) <= 0.02 * expected
        return
    assert len(crystal) == OURS.get(path.name, (expected,))[0]


@each_file
def test_the_volume_is_what_the_file_says(path):
    """No silently wrong cell: `_cell_volume`, where it is given, is that of the lengths and angles,
    except in files that were made wrong on purpose."""
    try:
        crystal = read_cif(path, disorder="average")
        block = gemmi.cif.read_string(path.read_bytes(), 0)[crystal.name or 0]
    except (CifError, ValueError, KeyError, UnicodeDecodeError):
        pytest.skip("refused, or not a proper CIF")
    volume = gemmi.cif.as_number(block.find_value("_cell_volume") or "?")
    if np.isfinite(volume) and "cell-vol" not in path.name:
        assert crystal.volume == pytest.approx(volume, rel=0.02)
