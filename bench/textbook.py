"""Textbook compounds: what a model predicts beside the values of a table, as Markdown.

    python bench/textbook.py mp-gap matbench_mp_gap_folds1234.parquet band_gap_eV

Each compound is a formula and a space group. Where a table holds several such structures, the one
with the fewest atoms per primitive cell counts, and among those the smallest volume per atom.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as parquet
import spglib

import sitenet
from sitenet.crystal.crystal import Crystal

# Formula, space group, usual name.
COMPOUNDS = (
    ("C", 227, "diamond"), ("Si", 227, "silicon"), ("Ge", 227, "germanium"),
    ("SiC", 216, "silicon carbide, 3C"), ("BN", 216, "boron nitride, cubic"),
    ("AlN", 186, "aluminium nitride"), ("GaN", 186, "gallium nitride"),
    ("InN", 186, "indium nitride"), ("AlP", 216, "aluminium phosphide"),
    ("GaP", 216, "gallium phosphide"), ("AlAs", 216, "aluminium arsenide"),
    ("GaAs", 216, "gallium arsenide"), ("InP", 216, "indium phosphide"),
    ("InAs", 216, "indium arsenide"), ("ZnO", 186, "wurtzite"), ("ZnS", 216, "zinc blende"),
    ("ZnSe", 216, "zinc selenide"), ("CdS", 186, "cadmium sulphide"),
    ("CdSe", 216, "cadmium selenide"), ("CdTe", 216, "cadmium telluride"),
    ("LiF", 225, "lithium fluoride"), ("NaF", 225, "sodium fluoride"),
    ("NaCl", 225, "rock salt"), ("KCl", 225, "potassium chloride"),
    ("KBr", 225, "potassium bromide"), ("CsCl", 221, "caesium chloride"),
    ("LiH", 225, "lithium hydride"), ("MgO", 225, "periclase"), ("CaO", 225, "lime"),
    ("BaO", 225, "barium oxide"), ("CaF2", 225, "fluorite"), ("MgF2", 136, "magnesium fluoride"),
    ("TiO2", 136, "rutile"), ("SnO2", 136, "cassiterite"), ("SiO2", 154, "quartz"),
    ("SiO2", 152, "quartz"), ("Al2O3", 167, "corundum"), ("SrTiO3", 221, "strontium titanate"),
    ("BaTiO3", 221, "barium titanate"), ("PbTe", 225, "lead telluride"), ("PbS", 225, "galena"),
    ("Cu2O", 224, "cuprite"), ("MoS2", 194, "molybdenite"), ("Cu", 225, "copper"),
    ("Al", 225, "aluminium"), ("Fe", 229, "iron"),
)  # fmt: skip


def space_group(crystal: Crystal) -> int:
    """Number of the space group, to within 0.01 angstrom."""
    cell = crystal.cell, crystal.frac, crystal.numbers
    return spglib.get_symmetry_dataset(cell, symprec=0.01).number


def composition(formula: str) -> frozenset[tuple[str, int]]:
    """Elements and their numbers in the reduced formula; reads "NaCl" and "Cl1 Na1" alike."""
    counts: dict[str, int] = {}
    for symbol, number in re.findall(r"([A-Z][a-z]?)(\d*)", formula):
        counts[symbol] = counts.get(symbol, 0) + int(number or 1)
    divisor = math.gcd(*counts.values())
    return frozenset((symbol, number // divisor) for symbol, number in counts.items())


def find(path: str, target: str) -> Iterator[tuple[str, int, Crystal, float]]:
    """Name, sites of the primitive cell, crystal and value of each compound in the table."""
    names = {(composition(formula), group): k for k, (formula, group, _) in enumerate(COMPOUNDS)}
    wanted = {elements for elements, _ in names}
    table = parquet.read_table(path, columns=["reduced_formula", "cif", target])
    best: dict[int, tuple] = {}
    for formula, cif, value in zip(*(column.to_pylist() for column in table), strict=True):
        elements = composition(formula)
        if elements not in wanted:
            continue
        crystal = sitenet.read_cif(cif).primitive()
        compound = names.get((elements, space_group(crystal)))
        rank = len(crystal), crystal.volume / len(crystal)
        if compound is not None and (compound not in best or rank < best[compound][0]):
            best[compound] = rank, crystal, value
    for compound, ((sites, _), crystal, value) in sorted(best.items()):
        formula, _, name = COMPOUNDS[compound]
        yield f"{formula} ({name})", sites, crystal, value


def main() -> None:
    """Print the table and the mean absolute error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help="model file or name")
    parser.add_argument("data", help="Parquet file with columns cif and reduced_formula")
    parser.add_argument("target", help="column of the values")
    options = parser.parse_args()
    model = sitenet.load(options.model)
    compounds = list(find(options.data, options.target))
    predicted = model.predict([crystal for _, _, crystal, _ in compounds]).reshape(-1)
    truth = np.array([value for *_, value in compounds])
    print("| compound | sites | table | predicted | difference |\n|---|---|---|---|---|")
    for (name, sites, _, value), y in zip(compounds, predicted, strict=True):
        print(f"| {name} | {sites} | {value:.2f} | {y:.2f} | {y - value:+.2f} |")
    print(
        f"\n{len(compounds)} compounds, mean absolute error {np.abs(predicted - truth).mean():.3f}"
    )


if __name__ == "__main__":
    main()
