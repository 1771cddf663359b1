"""Write the table that the second and third run train on: Matbench's band gaps and formation
energies, one row per structure.

    python tables.py matbench_mp_gap_folds1234.parquet matbench_mp_e_form.parquet TABLE

Structures are those of the band gaps, and those that only the formation energies have. ``fold`` is
the fold of the band gap in either case. To be small, CIFs hold the cell and the sites alone, with
six decimals; pairs are merged by distances to 1e-3 A, so nothing changes.
"""

import sys

import pyarrow as pa
import pyarrow.parquet as parquet

CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
SITE = ("type_symbol", "fract_x", "fract_y", "fract_z")


def read(cif):
    """Cell parameters and (symbol, x, y, z) of a CIF in P 1 with one item per line."""
    cell, columns, sites = {}, [], []
    for line in cif.splitlines():
        words = line.split()
        if not words:
            continue
        if words[0].startswith("_cell_"):
            cell[words[0].removeprefix("_cell_")] = words[-1]
        elif words[0].startswith("_atom_site_"):
            columns.append(words[0].removeprefix("_atom_site_"))
        elif columns:
            values = dict(zip(columns, words, strict=True))
            sites.append(tuple(values[name] for name in SITE))
    return [cell[name] for name in CELL], sites


def short(number):
    """A number of a CIF with six decimals, without the zeros at its end."""
    text = f"{float(number):.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def slim(cell, sites):
    """A CIF of cell and sites."""
    lines = ["data_"] + [f"_cell_{n} {short(x)}" for n, x in zip(CELL, cell, strict=True)]
    lines += ["loop_"] + [f"_atom_site_{name}" for name in SITE]
    lines += [" ".join((symbol, *map(short, frac))) for symbol, *frac in sites]
    return "\n".join(lines) + "\n"


def main(gaps_path, energies_path, out):
    gaps = parquet.read_table(gaps_path, columns=["id", "cif", "band_gap_eV", "matbench_fold"])
    energies = parquet.read_table(
        energies_path, columns=["id", "cif", "e_form_eV_per_atom", "mb_mp_gap_fold"]
    )
    rows, by_text = [], {}
    for gap in gaps.to_pylist():
        cif = slim(*read(gap["cif"]))
        by_text.setdefault((gap["matbench_fold"], cif), len(rows))
        rows.append((gap["id"], cif, gap["band_gap_eV"], None, str(gap["matbench_fold"])))
    shared = 0
    for energy in energies.to_pylist():
        fold, value = energy["mb_mp_gap_fold"], energy["e_form_eV_per_atom"]
        cif = slim(*read(energy["cif"]))
        k = by_text.get((fold, cif))
        if k is None:
            rows.append((energy["id"], cif, None, value, "none" if fold is None else str(fold)))
        else:
            shared += 1
            rows[k] = (*rows[k][:3], value, rows[k][4])
    names = ("id", "cif", "band_gap_eV", "e_form_eV_per_atom", "fold")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    options = {"compression": "zstd", "compression_level": 15, "row_group_size": 1 << 20}
    parquet.write_table(table, out, data_page_size=1 << 30, use_dictionary=False, **options)
    print(f"{len(rows)} structures, {shared} of them with both properties")


if __name__ == "__main__":
    main(*sys.argv[1:])
