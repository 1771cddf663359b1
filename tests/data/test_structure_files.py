"""Structure files of any form, written by ASE and pymatgen, hold the crystal that was written."""

import builtins
import gzip
import io
import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from toy_crystals import SMALL, cif_of, toy_crystals

import sitenet
from sitenet.config import SiteNetConfig
from sitenet.crystal.cif import CifWarning
from sitenet.crystal.crystal import Crystal
from sitenet.data import dataset
from sitenet.data.prepare import prepare
from sitenet.data.prepared import load_dataset
from sitenet.data.readers import open_source
from sitenet.data.structure_names import form_of, without_suffix
from sitenet.inference.encode import encode_files
from sitenet.inference.evaluate import evaluate
from sitenet.inference.explain_files import explain_files
from sitenet.inference.predict_files import predict_files
from sitenet.model.sitenet import SiteNet, Target
from sitenet.training.train import train

CRYSTALS = [
    Crystal(
        [[4.1, 0.2, -0.3], [1.1, 5.2, 0.4], [-0.7, 0.9, 6.3]],
        [[0.1, 0.2, 0.3], [0.61, 0.42, 0.83], [0.25, 0.9, 0.55]],
        [22, 8, 8],
    ),
    Crystal(3.9 * (1 - np.eye(3)), [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17]),
    Crystal(np.diag([3.0, 4, 5]), [[0, 0, 0.1]], [26]),
]
GAPS = [1.25, 8.5, -0.5]
# Extended XYZ has 8 decimals of angstrom, where the other forms have 15 digits or more: a rounding
# of 5e-9 angstrom, and twice that over the shortest cell vector of 3 angstrom.
ROUNDING = 5e-9


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SiteNetConfig(site_dim=4, interaction_dim=3, hidden=(9,), max_sites=30)
    return SiteNet(config, [Target("gap", "eV")]).eval()


def atoms_of(crystal, **info):
    atoms = crystal.to_ase()
    atoms.info |= info
    return atoms


def ase_io(form):
    def write(path, crystal):
        pytest.importorskip("ase.io").write(path, crystal.to_ase(), format=form)

    return write


def poscar(**options):
    def write(path, crystal):
        pytest.importorskip("ase.io").write(path, crystal.to_ase(), format="vasp", **options)

    return write


def gzipped(write):
    def write_packed(path, crystal):
        plain = path.with_name("plain")
        write(plain, crystal)
        path.write_bytes(gzip.compress(plain.read_bytes()))

    return write_packed


def ase_database(path, crystal):
    pytest.importorskip("ase.db").connect(path).write(crystal.to_ase())


def pymatgen_file(form):
    def write(path, crystal):
        pytest.importorskip("pymatgen.core")
        crystal.to_pymatgen().to(path, fmt=form)

    return write


def entry(path, crystal):
    entries = pytest.importorskip("pymatgen.entries.computed_entries")
    computed = entries.ComputedStructureEntry(crystal.to_pymatgen(), -3.0, entry_id="one")
    path.write_text(json.dumps(computed.as_dict()))


def optimade_of(crystal, name="one", **attributes):
    """An entry as OPTIMADE's specification gives it."""
    symbols = [crystal.site_label(k) for k in range(len(crystal))]
    return {
        "id": name,
        "type": "structures",
        "attributes": {
            "lattice_vectors": crystal.cell.tolist(),
            "cartesian_site_positions": (crystal.frac @ crystal.cell).tolist(),
            "species_at_sites": symbols,
            "species": [
                {"name": s, "chemical_symbols": [s], "concentration": [1.0]} for s in set(symbols)
            ],
            "dimension_types": [1, 1, 1],
            **attributes,
        },
    }


def optimade(path, crystal):
    path.write_text(json.dumps({"data": [optimade_of(crystal)], "meta": {"api_version": "1.2.0"}}))


def cif(path, crystal):
    path.write_text(cif_of(crystal))


def zipped(path, crystal):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("deep/one.cif", cif_of(crystal))


FORMS = {
    "POSCAR": poscar(),
    "CONTCAR": poscar(direct=True),
    "POSCAR_one": poscar(vasp6=True),
    "one.vasp": poscar(direct=True),
    "one.poscar": pymatgen_file("poscar"),
    "CONTCAR.gz": gzipped(poscar()),
    "one.xyz": ase_io("extxyz"),
    "one.EXTXYZ": ase_io("extxyz"),
    "one.extxyz.gz": gzipped(ase_io("extxyz")),
    "one.db": ase_database,
    "one-ase.json": ase_database,
    "one.json": pymatgen_file("json"),
    "one.json.gz": gzipped(pymatgen_file("json")),
    "entry.json": entry,
    "optimade.json": optimade,
    "one.cif": pymatgen_file("cif"),
    "one.cif.gz": gzipped(cif),
    "one.zip": zipped,
}


def assert_same(crystal, expected):
    """The same cell and the same sites, in whatever axes, order and period."""
    metric, other = (c.cell @ c.cell.T for c in (crystal, expected))
    np.testing.assert_allclose(metric, other, atol=2 * ROUNDING * np.sqrt(other.max()))
    order = [
        int(np.argmin(np.abs((point - crystal.frac + 0.5) % 1 - 0.5).sum(1)))
        for point in expected.frac
    ]
    assert sorted(order) == list(range(len(crystal)))
    assert crystal.numbers[order].tolist() == expected.numbers.tolist()
    apart = ((crystal.frac[order] - expected.frac + 0.5) % 1 - 0.5) @ expected.cell
    assert np.abs(apart).max() <= 2 * ROUNDING


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of ASE and pymatgen
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("number", [0, 1])
def test_each_form_is_read_back(tmp_path, model, name, number):
    crystal = CRYSTALS[number]
    path = tmp_path / name
    FORMS[name](path, crystal)
    read = sitenet.read(path)
    assert_same(read, crystal)
    (expected,) = model.predict([crystal], primitive=False)
    (y,) = model.predict([str(path)], primitive=False)
    assert abs(y - expected) < 1e-6
    ((_, _, predicted, *_),) = predict_files(model, [path], primitive=False).rows
    assert abs(predicted - expected) < 1e-6


def test_names_of_forms():
    forms = {
        "vasp": ["POSCAR", "contcar", "POSCAR.bak", "CONTCAR-2", "NaCl.POSCAR", "x.vasp.gz"],
        "xyz": ["a.xyz", "a.ExtXYZ", "a.xyz.gz"],
        None: ["POSCARS", "xposcar", ".POSCAR", "._a.cif", "a.txt", "a.db.gz", "a.zip.gz", "cif"],
    }
    for form, names in forms.items():
        assert {form_of(name) for name in names} == {form}
    for name, bare in (("a.cif.gz", "a"), ("POSCAR", "POSCAR"), ("a.b.xyz", "a.b"), (".db", ".db")):
        assert without_suffix(name) == bare


# ---------------------------------------------------------------------------------------------
# Files of several structures


def write_xyz(path, gaps=GAPS):
    frames = [
        atoms_of(c, gap_eV=gap, note="x y", vector=[1, 2])
        for c, gap in zip(CRYSTALS, gaps, strict=True)
    ]
    pytest.importorskip("ase.io").write(path, frames, format="extxyz")


def write_database(path, gaps=GAPS):
    with pytest.importorskip("ase.db").connect(path) as database:
        for k, (crystal, gap) in enumerate(zip(CRYSTALS, gaps, strict=True)):
            database.write(crystal.to_ase(), gap_eV=gap, name=f"row {k}")


def write_optimade(path, gaps=GAPS):
    entries = [
        optimade_of(crystal, f"id-{k}", gap_eV=gap)
        for k, (crystal, gap) in enumerate(zip(CRYSTALS, gaps, strict=True))
    ]
    path.write_text(json.dumps({"data": entries}))


def write_entries(path, gaps=GAPS):
    computed = pytest.importorskip("pymatgen.entries.computed_entries")
    entries = [
        computed.ComputedStructureEntry(
            crystal.to_pymatgen(), -3.0, entry_id=f"mp-{k}", data={"gap_eV": gap}
        ).as_dict()
        for k, (crystal, gap) in enumerate(zip(CRYSTALS, gaps, strict=True))
    ]
    path.write_text(json.dumps(entries))


def write_materials_project(path, gaps=GAPS):
    """As the documents of mp-api, each ``model_dump(mode="json")``."""
    pytest.importorskip("pymatgen.core")
    rows = [
        {"material_id": f"mp-{k}", "structure": c.to_pymatgen().as_dict(), "gap_eV": gap}
        for k, (c, gap) in enumerate(zip(CRYSTALS, gaps, strict=True))
    ]
    path.write_text(json.dumps(rows))


TABLES = {
    "t.extxyz": (write_xyz, ["t/1", "t/2", "t/3"]),
    "t.db": (write_database, ["row 0", "row 1", "row 2"]),
    "optimade.json": (write_optimade, ["id-0", "id-1", "id-2"]),
    "entries.json": (write_entries, ["mp-0", "mp-1", "mp-2"]),
    "docs.json": (write_materials_project, ["mp-0", "mp-1", "mp-2"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_values_beside_structures_are_targets(tmp_path, model, name):
    path = tmp_path / name
    write, ids = TABLES[name]
    write(path)
    source = open_source(path, ["gap_eV"])
    data = dataset.read(source)
    assert (source.units, len(source), data.ids) == (("eV",), 3, ids)
    np.testing.assert_allclose(data.targets[:, 0], GAPS)
    for crystal, expected in zip(data.crystals, CRYSTALS, strict=True):
        assert crystal.reduced_formula == expected.reduced_formula
    assert prepare(path, tmp_path / "p.parquet", ["gap_eV"])[0] == 3
    assert load_dataset(tmp_path / "p.parquet").ids == ids
    target = SiteNet(model.config, [Target("gap_eV", "eV")]).eval()
    predictions, left_out = evaluate(target, path, ["gap_eV"])
    assert (predictions.ids, left_out) == (ids, [])
    np.testing.assert_allclose(np.ravel(predictions.truth), GAPS)
    explained = explain_files(target, [path])
    assert explained.explanation.names == ids
    np.testing.assert_allclose(explained.truth[:, 0], GAPS)


def test_training_takes_frames_with_values(tmp_path):
    write = pytest.importorskip("ase.io").write
    crystals = toy_crystals(12)
    frames = [atoms_of(c, id=f"frame {k}", size_A=float(k)) for k, c in enumerate(crystals)]
    write(tmp_path / "t.extxyz", frames, format="extxyz")
    train(tmp_path / "t.extxyz", tmp_path / "run", SMALL, epochs=1, valid=0.25, test=0.25)
    (tmp_path / "one").mkdir()
    write(tmp_path / "one" / "POSCAR", frames[0], format="vasp")
    model = sitenet.load(tmp_path / "run")
    assert [target.name for target in model.targets] == ["size_A"]
    outcome = encode_files(model, [tmp_path / "t.extxyz", tmp_path / "one"], tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["ids"].tolist() == [*(f"frame {k}" for k in range(12)), "POSCAR"]
        # The same crystal, but for the 8 decimals of extended XYZ.
        np.testing.assert_allclose(arrays["encodings"][0], arrays["encodings"][12], atol=1e-5)
    assert outcome.count == 13


def test_lists_of_structures_and_a_single_one(tmp_path, model):
    pytest.importorskip("pymatgen.core")
    dicts = [crystal.to_pymatgen().as_dict() for crystal in CRYSTALS]
    (tmp_path / "list.json").write_text(json.dumps(dicts))
    (tmp_path / "one.json").write_text(json.dumps(dicts[0]))
    (tmp_path / "answer.json").write_text(json.dumps({"data": optimade_of(CRYSTALS[0], "only")}))
    ids = {
        path.name: [row[0] for row in predict_files(model, [path]).rows]
        for path in tmp_path.iterdir()
    }
    assert ids == {
        "list.json": ["list/1", "list/2", "list/3"],
        "one.json": ["one"],
        "answer.json": ["only"],
    }


def test_a_bad_frame_does_not_lose_the_others(tmp_path, model):
    path = tmp_path / "t.xyz"
    write_xyz(path)
    text = path.read_text()
    assert text.count("Na ") == 1
    path.write_text(text.replace("Na ", "Qq ").replace("Fe ", "X "))
    outcome = predict_files(model, [path])
    assert [row[0] for row in outcome.rows] == ["t/1"]
    assert [x.where for x in outcome.left_out] == [f"{path} row 2", f"{path} row 3"]
    assert "unknown element X" in outcome.left_out[1].reason
    path.write_text(text.replace("2\n", "two\n", 1))
    outcome = predict_files(model, [path])
    assert outcome.count == 1
    assert "line 6: expected a number of atoms" in outcome.left_out[0].reason
    path.write_text("99999999999999999999\ncomment\n")
    assert "expected a number of atoms" in predict_files(model, [path]).left_out[0].reason
    path.write_text("2\nno cell\nNa 0 0 0\nCl 0 0 3\n")
    assert "cell must have a volume" in predict_files(model, [path]).left_out[0].reason


def test_optimade_disorder_vacancies_and_missing_species(tmp_path):
    entry = optimade_of(CRYSTALS[1])
    mixed = {"name": "Na", "chemical_symbols": ["Na", "K"], "concentration": [0.75, 0.25]}
    vacant = {"name": "Cl", "chemical_symbols": ["Cl", "vacancy"], "concentration": [0.5, 0.5]}
    entry["attributes"]["species"] = [mixed, vacant]
    path = tmp_path / "o.json"
    path.write_text(json.dumps({"data": [entry]}))
    with pytest.raises(ValueError, match="partial occupancy"):
        sitenet.read(path)
    crystal = sitenet.read(path, disorder="average")
    assert crystal.numbers.tolist() == [11, 19, 17]
    assert crystal.occupancy.tolist() == [0.75, 0.25, 0.5]
    del entry["attributes"]["species"]
    path.write_text(json.dumps({"data": [entry]}))
    assert sitenet.read(path).numbers.tolist() == [11, 17]
    entry["attributes"]["lattice_vectors"][2] = [None] * 3
    path.write_text(json.dumps({"data": [entry]}))
    with pytest.raises(ValueError, match="not periodic in three directions"):
        sitenet.read(path)


def test_a_mixed_folder_keeps_its_order_and_lists_what_is_wrong(tmp_path, model):
    folder = tmp_path / "mixed"
    (folder / "e").mkdir(parents=True)
    cif(folder / "a.cif", CRYSTALS[0])
    write_xyz(folder / "b.xyz")
    poscar()(folder / "c.vasp", CRYSTALS[1])
    with zipfile.ZipFile(folder / "d.zip", "w") as archive:
        archive.writestr("x/1.cif", cif_of(CRYSTALS[2]))
        archive.writestr("x/notes.txt", "nothing")
        archive.writestr("2.cif.gz", gzip.compress(cif_of(CRYSTALS[0]).encode()))
        archive.writestr("3.cif", "data_broken\n")
    poscar()(folder / "e" / "POSCAR", CRYSTALS[2])
    (folder / "f.db").write_text("not a database")
    (folder / "g.json").write_text('{"lattice": 1')
    (folder / "h.json").write_text('{"settings": 1}')  # of something else
    (folder / "i.vasp").write_text("comment\n1\n")
    (folder / "j.zip").write_bytes(b"PK\x03\x04 broken")
    (folder / "README.md").write_text("ignored")
    outcome = predict_files(model, [folder])
    ids = [row[0] for row in outcome.rows]
    assert ids == ["a", "b/1", "b/2", "b/3", "c", "d/x/1", "d/2", "e/POSCAR"]
    assert [x.id for x in outcome.left_out] == ["d/3", "f", "g", "i", "j"]
    for left_out, reason in zip(
        outcome.left_out,
        ["", "no SQLite database", "damaged or not a JSON", "not a sound POSCAR", "no zip archive"],
        strict=True,
    ):
        assert reason in left_out.reason


def test_rows_of_a_table_name_files_of_any_form(tmp_path):
    poscar()(tmp_path / "a.vasp", CRYSTALS[0])
    write_xyz(tmp_path / "b.xyz")
    zipped(tmp_path / "c.zip", CRYSTALS[1])
    (tmp_path / "t.csv").write_text("id,y\na,1\nb.xyz#2,2\nc.zip#deep/one,3\nb,4\n")
    data = dataset.read(open_source(tmp_path))
    assert data.ids == ["a", "b.xyz#2", "c.zip#deep/one"]
    formulas = [c.reduced_formula for c in data.crystals]
    assert formulas == ["TiO2", "NaCl", "NaCl"]
    assert "holds 3 structures" in data.left_out[0].reason


def test_a_folder_as_alignn_has_it(tmp_path):
    for number in (0, 1):
        poscar()(tmp_path / f"POSCAR-JVASP-{number}.vasp", CRYSTALS[number])
    (tmp_path / "id_prop.csv").write_text("POSCAR-JVASP-1.vasp,1.5\nPOSCAR-JVASP-0.vasp,2.5\n")
    data = dataset.read(open_source(tmp_path))
    assert data.names == ("target",)
    assert [c.reduced_formula for c in data.crystals] == ["NaCl", "TiO2"]


@pytest.mark.parametrize("header", ["id,gap_eV\n", ""])
@pytest.mark.parametrize("folder", ["", "set/"])
def test_an_archive_with_its_table_is_a_table(tmp_path, model, header, folder):
    path = tmp_path / "data.zip"
    name = "targets.csv" if header else "id_prop.csv"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"__MACOSX/{folder}._{name}", "junk")
        archive.writestr(f"{folder}{name}", f"{header}a,1.5\nB.cif,2.5\nmissing,3\n")
        archive.writestr(f"{folder}a.cif", cif_of(CRYSTALS[0]))
        archive.writestr(f"{folder}b.CIF", cif_of(CRYSTALS[1]))
        archive.writestr(f"{folder}c.cif", cif_of(CRYSTALS[2]))
    source = open_source(path)
    data = dataset.read(source)
    assert data.ids == ["a", "B.cif"]
    assert data.targets[:, 0].tolist() == [1.5, 2.5]
    assert [c.reduced_formula for c in data.crystals] == ["TiO2", "NaCl"]
    assert [x.kind for x in data.left_out] == ["no such file"]
    assert dataset.read(open_source(path), workers=2).ids == data.ids
    before = source.fingerprint()
    path.write_bytes(path.read_bytes() + b"\0")
    assert open_source(path).fingerprint() != before
    ids = [row[0] for row in predict_files(model, [path]).rows]  # all crystals, whatever the table
    assert ids == [f"{folder}{name}" for name in "abc"]


def test_a_table_may_name_files_in_archives_beside_it(tmp_path):
    zipped(tmp_path / "c.zip", CRYSTALS[1])
    (tmp_path / "t.csv").write_text(
        "file,y\nc.zip/deep/one.cif,1\nc.zip/deep/ONE,2\nc.zip/x.cif,3\n"
    )
    data = dataset.read(open_source(tmp_path))
    assert data.targets[:, 0].tolist() == [1, 2]
    assert [x.kind for x in data.left_out] == ["no such file"]


def test_read_takes_the_first_structure_and_says_so(tmp_path):
    path = tmp_path / "t.xyz"
    write_xyz(path)
    with pytest.warns(CifWarning, match="holds more structures"):
        crystal = sitenet.read(path)
    assert (crystal.reduced_formula, crystal.name) == ("TiO2", "t")
    assert sitenet.read(cif_of(CRYSTALS[1])).reduced_formula == "NaCl"
    with pytest.raises(FileNotFoundError):
        sitenet.read(tmp_path / "POSCAR")
    (tmp_path / "POSCAR").write_text("NaCl\n1\n" + "1 0 0\n" * 3 + "999999999999\n")
    with pytest.raises(ValueError, match=r"POSCAR: 999999999999 sites"):
        sitenet.read(tmp_path / "POSCAR")


def test_without_ase_the_error_says_how_to_install_it(tmp_path, model, monkeypatch):
    write_xyz(tmp_path / "b.xyz")
    poscar()(tmp_path / "c.vasp", CRYSTALS[1])
    write_database(tmp_path / "d.db")
    cif(tmp_path / "e.cif", CRYSTALS[1])
    for name in [n for n in sys.modules if n == "ase" or n.startswith("ase.")]:
        monkeypatch.delitem(sys.modules, name)
    imported = builtins.__import__

    def blocked(name, *rest, **options):
        if name.partition(".")[0] == "ase":
            raise ImportError(name)
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", blocked)
    monkeypatch.setitem(sys.modules, "ase", None)
    outcome = predict_files(model, [tmp_path])
    assert [row[0] for row in outcome.rows] == ["e"]
    assert len(outcome.left_out) == 3
    assert all("pip install ase" in x.reason for x in outcome.left_out)
    assert set(outcome.reasons) == {"package not installed"}
    for name in ("b.xyz", "c.vasp", "d.db"):
        with pytest.raises(ImportError, match="pip install ase"):
            sitenet.read(tmp_path / name)


# ---------------------------------------------------------------------------------------------
# Hostile archives


def test_hostile_archives_do_nothing(tmp_path, model, monkeypatch):
    monkeypatch.setattr("sitenet.data.frames.LIMITS", sitenet.Limits(file_bytes=10_000))
    path = tmp_path / "deep" / "bomb.zip"
    path.parent.mkdir()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped.cif", cif_of(CRYSTALS[1]))
        archive.writestr("/etc/absolute.cif", cif_of(CRYSTALS[1]))
        archive.writestr("<img src=x>.cif", cif_of(CRYSTALS[1]))
        archive.writestr("huge.cif", b"\n" * 5_000_000)
        archive.writestr("nested.zip", b"PK")
    path.write_bytes(buffer.getvalue())
    before = sorted(p for p in tmp_path.rglob("*"))
    outcome = predict_files(model, [path])
    assert [row[0] for row in outcome.rows] == [
        "../../escaped",
        "/etc/absolute",
        "<img src=x>",
    ]
    assert [(x.id, x.kind) for x in outcome.left_out] == [("huge", "file too large")]
    assert sorted(p for p in tmp_path.rglob("*")) == before
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(200):
            archive.writestr(f"{k}.cif", b"\n" * 9_999)
    outcome = predict_files(model, [path])
    assert outcome.count == 0
    total = sum(1 for x in outcome.left_out if x.kind != "file too large") * 9_999
    assert total <= max(10_000, 200 * path.stat().st_size)
