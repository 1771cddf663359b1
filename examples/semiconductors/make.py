"""Write the CIF files and targets.csv beside this script from compounds.txt.

Each row of compounds.txt gives a formula, a structure type, its elements in the order A, B, C, D of
`STRUCTURES`, the cell lengths that the crystal system leaves free (a; a,c; a,b,c; a,b,c,beta), the
free coordinates in the order in which their names first appear in `STRUCTURES`, the experimental
band gap (0 for a metal or semimetal), and two keys of `SOURCES`: where to check the cell and the
gap. Values are rounded textbook values near room temperature.

    python examples/semiconductors/make.py [FOLDER]
"""

import collections
import csv
import fractions
import math
import pathlib
import re
import sys

import gemmi

HERE = pathlib.Path(__file__).parent

# structure -> (space group, sites of the asymmetric unit)
STRUCTURES = {
    "A15": ("P m -3 n", "A 0 0 0; B 1/4 0 1/2"),
    "AlB2": ("P 6/m m m", "A 0 0 0; B 1/3 2/3 1/2"),
    "BaTiO3": ("P 4 m m", "A 0 0 0; B 1/2 1/2 u; C 1/2 1/2 v; C 1/2 0 w"),
    "Cu3Au": ("P m -3 m", "A 0 0 0; B 0 1/2 1/2"),
    "CuAu": ("P 4/m m m", "A 0 0 0; B 1/2 1/2 1/2"),
    "Heusler": ("F m -3 m", "A 0 0 0; B 1/2 1/2 1/2; C 1/4 1/4 1/4"),
    "La2O3": ("P -3 m 1", "A 1/3 2/3 u; B 1/3 2/3 v; B 0 0 0"),
    "LaAlO3": ("R -3 c:H", "A 0 0 1/4; B 0 0 0; C u 0 1/4"),
    "LaB6": ("P m -3 m", "A 0 0 0; B u 1/2 1/2"),
    "LiNbO3": ("R 3 c:H", "A 0 0 u; B 0 0 0; C v w s"),
    "MgCu2": ("F d -3 m:2", "A 1/8 1/8 1/8; B 1/2 1/2 1/2"),
    "MgZn2": ("P 63/m m c", "A 1/3 2/3 u; B 0 0 0; B v 2*v 1/4"),
    "NbSe2": ("P 63/m m c", "A 0 0 1/4; B 1/3 2/3 u"),
    "ReO3": ("P m -3 m", "A 0 0 0; B 1/2 0 0"),
    "anatase": ("I 41/a m d:1", "A 0 0 0; B 0 0 u"),
    "arsenic": ("R -3 m:H", "A 0 0 u"),
    "baddeleyite": ("P 1 21/c 1", "A u1 u2 u3; B v1 v2 v3; B w1 w2 w3"),
    "bcc": ("I m -3 m", "A 0 0 0"),
    "bismuth-iodide": ("R -3:H", "A 0 0 u; B v w s"),
    "bismuth-telluride": ("R -3 m:H", "A 0 0 u; B 0 0 v; B 0 0 0"),
    "bixbyite": ("I a -3", "A 1/4 1/4 1/4; A u 0 1/4; B v w s"),
    "black-phosphorus": ("C m c e", "A 0 u v"),
    "boron-nitride": ("P 63/m m c", "A 1/3 2/3 1/4; B 2/3 1/3 1/4"),
    "cadmium-iodide": ("P -3 m 1", "A 0 0 0; B 1/3 2/3 u"),
    "caesium-chloride": ("P m -3 m", "A 0 0 0; B 1/2 1/2 1/2"),
    "chalcopyrite": ("I -4 2 d", "A 0 0 0; B 0 0 1/2; C u 1/4 1/8"),
    "cinnabar": ("P 31 2 1", "A u 0 1/3; B v 0 5/6"),
    "corundum": ("R -3 c:H", "A 0 0 u; B v 0 1/4"),
    "cuprite": ("P n -3 m:2", "A 0 0 0; B 1/4 1/4 1/4"),
    "delafossite": ("R -3 m:H", "A 0 0 0; B 0 0 1/2; C 0 0 u"),
    "diamond": ("F d -3 m:2", "A 1/8 1/8 1/8"),
    "fcc": ("F m -3 m", "A 0 0 0"),
    "fluorite": ("F m -3 m", "A 0 0 0; B 1/4 1/4 1/4"),
    "gallium-sulfide": ("P 63/m m c", "A 1/3 2/3 u; B 1/3 2/3 v"),
    "graphite": ("P 63/m m c", "A 0 0 1/4; A 1/3 2/3 1/4"),
    "half-Heusler": ("F -4 3 m", "A 0 0 0; B 1/4 1/4 1/4; C 1/2 1/2 1/2"),
    "hcp": ("P 63/m m c", "A 1/3 2/3 1/4"),
    "indium": ("I 4/m m m", "A 0 0 0"),
    "iodine": ("C m c e", "A 0 u v"),
    "kesterite": ("I -4", "A 0 0 0; A 0 1/2 1/4; B 0 1/2 3/4; C 0 0 1/2; D u v w"),
    "litharge": ("P 4/n m m:1", "A 0 1/2 u; B 0 0 0"),
    "lithium-nitride": ("P 6/m m m", "A 0 0 1/2; A 1/3 2/3 0; B 0 0 0"),
    "marcasite": ("P n n m", "A 0 0 0; B u v 0"),
    "mercury-iodide": ("P 42/n m c:1", "A 0 0 0; B 0 1/2 u"),
    "moissanite-4H": ("P 63 m c", "A 0 0 3/16; A 1/3 2/3 7/16; B 0 0 0; B 1/3 2/3 1/4"),
    "moissanite-6H": (
        "P 63 m c",
        "A 0 0 1/8; A 1/3 2/3 7/24; A 2/3 1/3 11/24; B 0 0 0; B 1/3 2/3 1/6; B 2/3 1/3 1/3",
    ),
    "molybdenite": ("P 63/m m c", "A 1/3 2/3 1/4; B 1/3 2/3 u"),
    "molybdite": ("P n m a", "A u1 1/4 u3; B v1 1/4 v3; B w1 1/4 w3; B s1 1/4 s3"),
    "nickel-arsenide": ("P 63/m m c", "A 0 0 0; B 1/3 2/3 1/4"),
    "perovskite": ("P m -3 m", "A 1/2 1/2 1/2; B 0 0 0; C 1/2 0 0"),
    "pyrite": ("P a -3", "A 0 0 0; B u u u"),
    "quartz": ("P 31 2 1", "A u 0 1/3; B v w s"),
    "rocksalt": ("F m -3 m", "A 0 0 0; B 1/2 1/2 1/2"),
    "rutile": ("P 42/m n m", "A 0 0 0; B u u 0"),
    "selenium": ("P 31 2 1", "A u 0 1/3"),
    "shcherbinaite": ("P m m n:2", "A u1 1/4 u3; B v1 1/4 v3; B w1 1/4 w3; B 1/4 1/4 s3"),
    "spinel": ("F d -3 m:2", "A 1/8 1/8 1/8; B 1/2 1/2 1/2; C u u u"),
    "stibnite": (
        "P n m a",
        "A u1 1/4 u3; A v1 1/4 v3; B p1 1/4 p3; B q1 1/4 q3; B r1 1/4 r3",
    ),
    "tenorite": ("C 1 2/c 1", "A 1/4 1/4 0; B 0 u 1/4"),
    "thallium-selenide": ("I 4/m c m", "A 0 0 1/4; A 0 1/2 1/4; B u u+1/2 0"),
    "tin-sulfide": ("P n m a", "A u1 1/4 u3; B v1 1/4 v3"),
    "tungsten-carbide": ("P -6 m 2", "A 0 0 0; B 1/3 2/3 1/2"),
    "white-tin": ("I 41/a m d:1", "A 0 0 0"),
    "wurtzite": ("P 63 m c", "A 1/3 2/3 0; B 1/3 2/3 u"),
    "zincblende": ("F -4 3 m", "A 0 0 0; B 1/4 1/4 1/4"),
}

SOURCES = {
    "AB70": "S. Asbrink, L.-J. Norrby, Acta Cryst. B 26, 8 (1970)",
    "AK18": "Q. A. Akkerman et al., Nature Materials 17, 394 (2018)",
    "AL90": "F. G. Aliev et al., Z. Phys. B 80, 353 (1990)",
    "BA65": "P. K. Baltzer et al., Phys. Rev. Lett. 15, 493 (1965)",
    "BA77": "M. Balog et al., Thin Solid Films 41, 247 (1977)",
    "BB79": "H. Brendecke, W. Bludau, J. Appl. Phys. 50, 4743 (1979)",
    "BF89": "M. L. Bortz, R. H. French, Appl. Phys. Lett. 55, 1955 (1989)",
    "KK02": "A. Kyono, M. Kimata et al., Phys. Chem. Minerals 29, 254 (2002)",
    "BR65": "A. Brown, S. Rundqvist, Acta Cryst. 19, 684 (1965)",
    "CA16": "G. Cassabois, P. Valvin, B. Gil, Nature Photonics 10, 262 (2016)",
    "CO92": "P. A. Cox, Transition Metal Oxides, Oxford (1992)",
    "CRC": "CRC Handbook of Chemistry and Physics, properties of semiconductors",
    "EG86": "R. Enjalbert, J. Galy, Acta Cryst. C 42, 1467 (1986)",
    "EN93": "A. Ennaoui et al., Sol. Energy Mater. Sol. Cells 29, 289 (1993)",
    "FR90": "R. H. French, J. Am. Ceram. Soc. 73, 477 (1990)",
    "FR94": "R. H. French et al., Phys. Rev. B 49, 5133 (1994)",
    "GM92": "J. L. Garcia-Munoz et al., Phys. Rev. B 46, 4414 (1992)",
    "GN65": "D. L. Greenaway, R. Nitsche, J. Phys. Chem. Solids 26, 1445 (1965)",
    "GO04": "F. Goubin et al., Chem. Mater. 16, 662 (2004)",
    "HA85": "R. E. Hann, P. R. Suitch, J. L. Pentecost, J. Am. Ceram. Soc. 68, C285 (1985)",
    "HO88": "C. J. Howard, R. J. Hill, B. E. Reichert, Acta Cryst. B 44, 116 (1988)",
    "HS78": "S. R. Hall, J. T. Szymanski, J. M. Stewart, Can. Mineral. 16, 131 (1978)",
    "JS80": "M. S. Jagadeesh, M. S. Seehra, Phys. Lett. A 80, 59 (1980)",
    "K05": "C. Kittel, Introduction to Solid State Physics, 8th ed., Wiley (2005)",
    "KA97": "H. Kawazoe et al., Nature 389, 939 (1997)",
    "KB82": "F. P. Koffyberg, F. A. Benko, J. Appl. Phys. 53, 1173 (1982)",
    "KI63": "L. Kihlborg, Arkiv Kemi 21, 357 (1963)",
    "KP82": "K. K. Kam, B. A. Parkinson, J. Phys. Chem. 86, 463 (1982)",
    "KT05": "H. Katagiri, Thin Solid Films 480, 426 (2005)",
    "KU94": "K. Kuriyama et al., Phys. Rev. B 49, 4511 (1994), and earlier work cited there",
    "LE69": "H. W. Lehmann, F. P. Emmenegger, Solid State Commun. 7, 965 (1969)",
    "M04": "O. Madelung, Semiconductors: Data Handbook, 3rd ed., Springer (2004)",
    "MA66": "M. Marezio, Acta Cryst. 20, 723 (1966)",
    "MI04": "H. Mizoguchi, H. W. Eng, P. M. Woodward, Inorg. Chem. 43, 1667 (2004)",
    "MO58": "C. K. Moller, Nature 182, 1436 (1958)",
    "OG08": "Y. Ogo et al., Appl. Phys. Lett. 93, 032113 (2008)",
    "OM94": "T. Omata et al., Appl. Phys. Lett. 64, 1077 (1994)",
    "OW84": "H. J. Orman, P. J. Wiseman, Acta Cryst. C 40, 12 (1984)",
    "P91": "P. Villars, L. D. Calvert, Pearson's Handbook, 2nd ed., ASM (1991)",
    "PO75": "R. T. Poole et al., Phys. Rev. B 11, 5179 (1975)",
    "PR96": "A. V. Prokofiev et al., J. Alloys Compd. 242, 41 (1996)",
    "RL71": "E. T. Rodine, P. L. Land, Phys. Rev. B 4, 2701 (1971)",
    "RO00": "J. Robertson, J. Vac. Sci. Technol. B 18, 1785 (2000)",
    "RO69": "D. B. Rogers et al., Inorg. Chem. 8, 841 (1969)",
    "RS76": "A. Rabenau, H. Schulz, J. Less-Common Met. 50, 155 (1976)",
    "RU72": "G. W. Rubloff, Phys. Rev. B 5, 662 (1972)",
    "SC73": "W. H. Strehlow, E. L. Cook, J. Phys. Chem. Ref. Data 2, 163 (1973)",
    "SE78": "M. Stapelbroek, B. D. Evans, Solid State Commun. 25, 959 (1978)",
    "SH78": "J. Schoenes, J. Appl. Phys. 49, 1463 (1978)",
    "SP59": "W. E. Spicer, A. H. Sommer, J. G. White, Phys. Rev. 115, 57 (1959)",
    "SR71": "R. D. Shannon, D. B. Rogers, C. T. Prewitt, Inorg. Chem. 10, 713 (1971)",
    "ST13": "C. C. Stoumpos et al., Inorg. Chem. 52, 9019 (2013)",
    "SW75": "J. L. Shay, J. H. Wernick, Ternary Chalcopyrite Semiconductors, Pergamon (1975)",
    "TG82": "H. Tributsch, O. Gorochov, Electrochim. Acta 27, 215 (1982)",
    "TJ90": "L. H. Tjeng et al., Phys. Rev. B 41, 3190 (1990)",
    "TR66": "J. Trotter, T. Zobel, Z. Kristallogr. 123, 67 (1966)",
    "VB67": "F. van Bolhuis et al., Acta Cryst. 23, 90 (1967)",
    "VE91": "J. van Elp et al., Phys. Rev. B 44, 6090 (1991)",
    "W63": "R. W. G. Wyckoff, Crystal Structures, 2nd ed., Wiley (1963-1966)",
    "WA79": "P. Wachter, Handbook on the Physics and Chemistry of Rare Earths 2, ch. 19 (1979)",
    "WC85": "R. S. Weis, T. K. Gaylord, Appl. Phys. A 37, 191 (1985)",
    "WE03": "M. J. Weber, Handbook of Optical Materials, CRC Press (2003)",
    "WF73": "R. C. Whited, C. J. Flaten, W. C. Walker, Solid State Commun. 13, 1903 (1973)",
    "WI08": "A. Walsh et al., Phys. Rev. Lett. 100, 167402 (2008)",
    "WS78": "H. Wiedemeier, H. G. von Schnering, Z. Kristallogr. 148, 295 (1978)",
    "WU02": "J. Wu et al., Appl. Phys. Lett. 80, 3967 (2002)",
    "WY69": "J. A. Wilson, A. D. Yoffe, Adv. Phys. 18, 193 (1969)",
}

Row = collections.namedtuple(
    "Row", "formula structure elements cell coordinates gap cell_source gap_source"
)


def read_rows(path=HERE / "compounds.txt"):
    """Rows of the table, as strings."""
    lines = path.read_text().splitlines()
    return [Row(*line.split()) for line in lines if line and not line.startswith("#")]


def unit_cell(group, values):
    """The six cell parameters from those that the crystal system leaves free."""
    system = group.crystal_system_str()
    if system == "cubic":
        (a,) = values
        return gemmi.UnitCell(a, a, a, 90, 90, 90)
    if system in ("hexagonal", "trigonal", "tetragonal"):
        a, c = values
        return gemmi.UnitCell(a, a, c, 90, 90, 90 if system == "tetragonal" else 120)
    a, b, c, *beta = values
    return gemmi.UnitCell(a, b, c, 90, beta[0] if beta else 90, 90)


def sites(structure, elements, coordinates):
    """(element, (x, y, z)) of the asymmetric unit; coordinates are exact fractions."""
    template = STRUCTURES[structure][1]
    names = list(dict.fromkeys(re.findall(r"[a-z]\d?", template)))
    if len(names) != len(coordinates):
        raise ValueError(f"{structure} needs {names}, got {len(coordinates)} coordinates")
    values = dict(zip(names, map(fractions.Fraction, coordinates), strict=True))

    def value(text):
        text = re.sub(r"(?<![a-z])(\d+)", r"F(\1)", text)
        return eval(text, {"__builtins__": {}, "F": fractions.Fraction}, values)

    for site in template.split(";"):
        letter, *xyz = site.split()
        yield elements["ABCD".index(letter)], tuple(value(x) % 1 for x in xyz)


def multiplicity(group, xyz):
    """Number of sites of a cell that are equivalent to xyz."""
    seen = set()
    for op in group.operations():
        image = [
            fractions.Fraction(shift, op.DEN)
            + sum(fractions.Fraction(r, op.DEN) * x for r, x in zip(row, xyz, strict=True))
            for row, shift in zip(op.rot, op.tran, strict=True)
        ]
        seen.add(tuple(x % 1 for x in image))
    return len(seen)


def elements_of(formula):
    """Number of atoms of each element."""
    return {e: int(n or 1) for e, n in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}


def cif(row):
    """Name of the compound and the text of its CIF."""
    group = gemmi.find_spacegroup_by_name(STRUCTURES[row.structure][0])
    cell = unit_cell(group, [float(x) for x in row.cell.split(",")])
    coordinates = [] if row.coordinates == "-" else row.coordinates.split(",")
    elements = row.elements.split(",")
    atoms = [
        (element, multiplicity(group, xyz), xyz)
        for element, xyz in sites(row.structure, elements, coordinates)
    ]
    total = collections.Counter()
    for element, count, _ in atoms:
        total[element] += count
    units = math.gcd(*total.values())
    reduced = {element: count // units for element, count in total.items()}
    if reduced != elements_of(row.formula):
        raise ValueError(f"the sites of {row.formula} make {reduced}")
    name = f"{row.formula}_{row.structure}"
    hill = " ".join(f"{e}{n}" for e, n in sorted(reduced.items()))
    lines = [
        f"data_{name}",
        f"_chemical_formula_sum '{hill}'",
        f"_cell_formula_units_Z {units}",
        *(f"_cell_length_{k} {getattr(cell, k):.4f}" for k in "abc"),
        *(f"_cell_angle_{k} {getattr(cell, k):.2f}" for k in ("alpha", "beta", "gamma")),
        f"_cell_volume {cell.volume:.3f}",
        f"_space_group_name_H-M_alt '{group.xhm()}'",
        f"_space_group_IT_number {group.number}",
        "loop_",
        "_space_group_symop_id",
        "_space_group_symop_operation_xyz",
        *(f"{i} {op.triplet()}" for i, op in enumerate(group.operations(), 1)),
        "loop_",
        "_atom_site_label",
        "_atom_site_type_symbol",
        "_atom_site_symmetry_multiplicity",
        "_atom_site_fract_x",
        "_atom_site_fract_y",
        "_atom_site_fract_z",
        "_atom_site_occupancy",
    ]
    number = collections.Counter()
    for element, count, xyz in atoms:
        number[element] += 1
        place = " ".join(f"{float(x):.6f}" for x in xyz)
        lines.append(f"{element}{number[element]} {element} {count} {place} 1")
    return name, "\n".join(lines) + "\n"


def main(folder=HERE):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    targets = {}
    for row in read_rows():
        if unknown := {row.cell_source, row.gap_source} - SOURCES.keys():
            raise ValueError(f"{row}: unknown source {unknown}")
        name, text = cif(row)
        if name in targets:
            raise ValueError(f"two rows make {name}")
        targets[name] = row.gap
        (folder / f"{name}.cif").write_text(text, encoding="ascii")
    with open(folder / "targets.csv", "w", newline="", encoding="ascii") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "band_gap_eV"])
        table.writerows(sorted(targets.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
