"""The bench that learns properties of disordered crystals."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

pytest.importorskip("sklearn")
import learn_disorder as bench
from trainers import FAST

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.elements import NUM_ELEMENTS, site_features

CIF = """data_{name}
_cell_length_a {a}
_cell_length_b {a}
_cell_length_c {a}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{metal} 0 0 0 {share}
Zn 0 0 0 {rest}
O 0.5 0.5 0.5 1
"""


@pytest.fixture
def table(tmp_path):
    """Thirty oxides, three of each metal; each composition has two structures."""
    rows = []
    for metal in "Li Na K Mg Ca Sr Al Ga Fe Ni".split():
        for share in (1.0, 0.75, 0.5):
            for k, a in enumerate((4.0, 4.5)):
                name = f"{metal}-{share}-{k}"
                cif = CIF.format(name=name, a=a, metal=metal, share=share, rest=1 - share)
                rows.append((name, cif, f"{metal}{share}O", a + share))
    columns = zip(*rows, strict=True)
    names = "id cif formula_supercon tc_K".split()
    path = tmp_path / "table.parquet"
    parquet.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), path)
    return path


def test_a_composition_has_its_first_structure(table):
    rows = bench.read(table, bench.SUPERCONDUCTORS, None)
    assert rows.column_names == ["id", "cif", "tc_K"]
    assert len(rows) == 30 and all(name.endswith("-0") for name in rows["id"].to_pylist())


def test_features_of_a_composition():
    """A cell with 0.5 Li, 0.5 vacancy and 1 O has a third of Li, whatever its positions."""
    frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    crystal = Crystal(np.eye(3) * 4, frac, [3, 8], occupancy=[0.5, 1])
    shares, rest = np.split(bench.composition_features(crystal), [NUM_ELEMENTS])
    assert shares[3] == pytest.approx(1 / 3) and shares[8] == pytest.approx(2 / 3)
    assert shares.sum() == pytest.approx(1)
    lithium, oxygen = site_features([3, 8])
    mean, spread, least, most = np.split(rest, 4)
    assert mean == pytest.approx((lithium + 2 * oxygen) / 3)
    assert spread == pytest.approx(abs(lithium - oxygen) * np.sqrt(2) / 3)
    assert least == pytest.approx(np.minimum(lithium, oxygen))
    assert most == pytest.approx(np.maximum(lithium, oxygen))


def test_the_forest_never_sees_the_fold_that_it_predicts():
    x = np.arange(40.0)[:, None]
    fold = np.repeat([1, 2], 20)
    y = np.where(fold == 1, 5.0, -3.0)
    assert (bench.forest(x, y, fold) == np.where(fold == 1, -3.0, 5.0)).all()


def test_models_and_baseline_share_the_folds(table, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "STARTS", {"random weights": None})
    monkeypatch.setattr(bench, "CONFIG", FAST)
    lines = bench.judge(bench.SUPERCONDUCTORS, table, tmp_path / "runs", None, 1)
    assert lines[0] == "## Critical temperature, 30 crystals"
    assert "20 crystals with partial occupancy, 3 folds" in lines[2]
    with open(tmp_path / "runs" / "random" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    fold = np.array([int(row["fold"]) for row in rows])
    metals = np.array([row["id"].partition("-")[0] for row in rows])
    pure = np.array([row["id"].split("-")[1] == "1.0" for row in rows])
    for metal in np.unique(metals):
        assert len(set(fold[(metals == metal) & ~pure])) == 1  # the same three elements
    error = np.abs([float(row["tc_K"]) - float(row["tc_K_predicted"]) for row in rows])
    mean = np.mean([error[fold == k].mean() for k in np.unique(fold)])
    assert lines[6].startswith(f"| `density` from random weights | {mean:.3g} ±")
    assert [line.split("|")[1].strip() for line in lines[7:9]] == [
        "random forest on the composition",
        "median of the training crystals",
    ]
