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
pytestmark = [
    pytest.mark.skipif(not PATHS, reason=f"no files in {FOLDER}"),
    pytest.mark.filterwarnings("ignore::sitenet.CifWarning"),
]
each_file = pytest.mark.parametrize("path", PATHS or [None], ids=lambda p: getattr(p, "name", ""))

# Where the count differs from what other programs agree on, and why this one is right.
OURS = {
    "codtools__1010246.cif": (16, "two hydrogens are dummies, at no place, flagged `dum`"),
    "codtools__2208311-zero-occupancies.cif": (96, "a ring's centre has occupancy 0"),
    "dans__Ca3CoMnO6.mcif": (66, "the operations are magnetic ones, which the others pass over"),
    "dans__Sr3LiRuO6_C2'c'.mcif": (66, "likewise"),
    "pymatgen__magnetic.ncl.example.GdB4.mcif": (20, "likewise"),
}
# Files that contradict themselves, and all that is wrong with them.
DOUBTFUL = {
    "avogadro__Te-Tellurium.cif": "density of 6.28",  # 6.24 is measured; the file says 3.883
    "codtools__1010246.cif": "no H is listed",
    "codtools__1100117.cif": "no H is listed",
    "codtools__1100192-r-factor.cif": "no multiple",  # a solvent too many
    "codtools__1100974-wr-factor.cif": "no multiple",  # 2 of 12 H are not listed
    "codtools__2000000-trimmed.cif": "no multiple",  # most atoms were cut off
    "codtools__2000728-atom-type-questionmarks.cif": "no H is listed",
    "codtools__2001520-disorder-no-occupancy.cif": "no H is listed",
    "codtools__2001811-googness-of-fit.cif": "no multiple",  # O of occupancy 7/6 in all
    "codtools__2001826-with-special-details.cif": "no multiple",  # H of a rotating methyl group
    "codtools__2001826-with-vrf-text.cif": "no multiple",  # likewise
    "codtools__2001925.cif": "Z 4 make C56H56N8O8",  # three of four operations are missing
    "codtools__2009397.cif": "no multiple",  # C93 Cl12 for C90 Cl9
    "codtools__2201319.cif": "no multiple",  # H28 of H36
    "pycifrw__nick.cif": "no H is listed",
    "pycifrw__nick_old.cif": "no H is listed",
    "pymatgen__cif_implicit_hydrogens_cod_1011130.cif": "no H is listed",
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


@each_file
def test_only_contradictions_are_doubted(path):
    try:
        crystals = read_cifs(path, disorder="average")
    except CifError:
        pytest.skip("refused")
    doubts = [text for crystal in crystals for text in crystal.warnings]
    if path.name in DOUBTFUL:
        assert DOUBTFUL[path.name] in doubts[0]
    else:
        assert not doubts
