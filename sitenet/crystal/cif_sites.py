"""The atoms that a CIF block lists: coordinates, species and occupancies."""

from __future__ import annotations

import re
from typing import NamedTuple

import gemmi
import numpy as np

from sitenet.crystal import cif_blocks as blocks
from sitenet.crystal.cif_blocks import UNKNOWN, Block, Unreadable, number_problem, shown
from sitenet.crystal.cif_species import Species, Unnamed, is_placeholder, species_of
from sitenet.crystal.disorder import FULL
from sitenet.crystal.elements import ISOTOPES, NUMBERS
from sitenet.crystal.symmetry import CROWDED, NEAR, SAME, near_pairs


class Sites(NamedTuple):
    """The atoms that a block lists, one row per species of a site."""

    labels: list[str]
    frac: np.ndarray
    rounding: np.ndarray  # (rows, 3) one unit of the last digit of each coordinate
    numbers: np.ndarray
    oxidation: np.ndarray
    occupancy: np.ndarray
    hydrogens: np.ndarray  # (rows,) attached to the site, but not listed
    groups: np.ndarray | None  # (rows, 2) as in Crystal


def read_sites(block: Block) -> Sites:
    """Read the atoms of a block, without vacancies and dummies.

    Raises:
        Unreadable: there are none, or one is not sound.
    """
    table = _table(block)
    count = len(table[blocks.LABEL])
    flags = table.get(blocks.FLAG, ["d"] * count)
    labels = table[blocks.LABEL]
    occupancy = _occupancies(table.get(blocks.OCCUPANCY, ["1"] * count), labels, flags)
    if "dum" in flags or not occupancy.all():
        rows = [k for k in range(count) if flags[k] != "dum" and occupancy[k] > 0]
        if not rows:
            raise Unreadable("no sites (none is occupied)", "no sites")
        table = {tag: [column[k] for k in rows] for tag, column in table.items()}
        occupancy, labels = occupancy[rows], table[blocks.LABEL]
    texts = [table[tag] for tag in blocks.FRACT]
    frac = _coordinates(texts, labels)
    source, species = _species(block, table, frac, occupancy)
    numbers, oxidation, share = map(np.array, zip(*species, strict=True))
    hydrogens = _attached_hydrogens(table, len(labels))
    groups = _disorder_groups(table)
    rounding = np.ones(frac.shape)  # has no effect where sites are full
    if (share == 1).all() and len(source) == len(frac):
        if (occupancy < 1).any():
            rounding = _last_digits(texts)
        return Sites(labels, frac, rounding, numbers, oxidation, occupancy, hydrogens, groups)
    occupancy = occupancy[source] * share
    return Sites(
        [labels[k] for k in source.tolist()],
        frac[source],
        _last_digits(texts)[source],
        numbers,
        oxidation,
        np.where(occupancy >= FULL, 1.0, occupancy),
        hydrogens[source],
        None if groups is None else groups[source],
    )


_COLUMNS = (
    blocks.LABEL,
    blocks.SYMBOL,
    *blocks.FRACT,
    blocks.OCCUPANCY,
    blocks.FLAG,
    blocks.HYDROGENS,
)
_DISORDER = (blocks.ASSEMBLY, blocks.GROUP)


def _table(block: Block) -> dict[str, list[str]]:
    """The columns of the loop of sites, with a label for every site."""
    table = {tag: block.columns[tag] for tag in _COLUMNS if tag in block.columns}
    if blocks.FRACT[0] not in table:
        what = "Cartesian coordinates only; " if blocks.CARTN in block.columns else ""
        raise Unreadable(f"no sites ({what}{blocks.FRACT[0]} is missing)", "no sites")
    labels = table.get(blocks.LABEL) or table.get(blocks.SYMBOL)
    if labels is None:
        raise Unreadable(
            "sites have neither _atom_site_type_symbol nor _atom_site_label", "no sites"
        )
    for tag in blocks.FRACT:
        if tag not in table:
            raise Unreadable(f"no sites ({tag} is missing)", "no sites")
    table.setdefault(blocks.LABEL, labels)
    count = len(table[blocks.FRACT[0]])
    for tag, column in table.items():
        if len(column) != count:
            raise Unreadable(
                f"{tag} has {len(column)} values, {blocks.FRACT[0]} has {count}: "
                f"columns of _atom_site_ differ in length",
                "columns of different lengths",
            )
    disorder = {tag: block.columns.get(tag, []) for tag in _DISORDER}
    return table | {tag: column for tag, column in disorder.items() if len(column) == count}


def _coordinates(texts: list[list[str]], labels: list[str]) -> np.ndarray:
    """(rows, 3) from the columns of the file."""
    try:
        values = np.array([[float(text) for text in column] for column in texts])
    except ValueError:
        values = np.array(
            [[gemmi.cif.as_number(text.strip("'\"")) for text in column] for column in texts]
        )
    sound = abs(values) < 1000  # false for NaN
    if not sound.all():
        k, row = divmod(int(np.argmin(sound)), len(labels))
        problem = number_problem(texts[k][row])
        raise Unreadable(
            f"coordinates of {labels[row]:.40} are unknown: {problem}", "unknown coordinates"
        )
    return np.ascontiguousarray(values.T)


def _last_digit(text: str) -> float:
    """One unit of the last digit of a coordinate, as if it had two digits at least and three at
    most: trailing zeros may be missing, and no atom is split by less than 0.001."""
    decimals = re.search(r"\.(\d*)", text)
    return 10.0 ** -min(max(len(decimals[1]) if decimals else 0, 2), 3)


def _last_digits(texts: list[list[str]]) -> np.ndarray:
    return np.array([[_last_digit(text) for text in column] for column in texts]).T


def _occupancies(column: list[str], labels: list[str], flags: list[str]) -> np.ndarray:
    """Occupancies, 1 where they are not known."""
    if column.count("1") == len(column):
        return np.ones(len(column))
    unknown = np.array([text.strip() in UNKNOWN for text in column])
    values = np.where(unknown, 1.0, [gemmi.cif.as_number(text) for text in column])
    sound = (values >= 0) & (values <= CROWDED)
    for row in np.flatnonzero(~sound):
        if flags[row] != "dum":
            raise Unreadable(
                f"occupancy of {labels[row]:.40} is {number_problem(column[row])}",
                "impossible occupancy",
            )
    return np.where(values >= FULL, 1.0, values)


def _attached_hydrogens(table: dict[str, list[str]], count: int) -> np.ndarray:
    texts = table.get(blocks.HYDROGENS)
    if texts is None:
        return np.zeros(count)
    return np.array([max(0.0, gemmi.cif.as_number(text, 0.0)) for text in texts])


def _disorder_groups(table: dict[str, list[str]]) -> np.ndarray | None:
    """The disorder assembly and group of each site, as in ``Crystal.groups``; None without groups.

    A negative group is an alternative to its own symmetry images, which distances tell as well.
    """
    groups = table.get(blocks.GROUP)
    if groups is None:
        return None
    assemblies = table.get(blocks.ASSEMBLY, ["."] * len(groups))
    known = [text not in UNKNOWN and text != "0" and text[:1] != "-" for text in groups]
    if not any(known):
        return None
    columns = [np.unique(x, return_inverse=True)[1].reshape(-1) for x in (assemblies, groups)]
    return np.where(np.array(known)[:, None], np.stack(columns, 1) + 1, 0)


def _species(
    block: Block, table: dict[str, list[str]], frac: np.ndarray, occupancy: np.ndarray
) -> tuple[np.ndarray, list[Species]]:
    """The species on the sites, and which site each is on."""
    labels = table[blocks.LABEL]
    symbols = table.get(blocks.SYMBOL, ["?"] * len(labels))
    has_labels = blocks.LABEL in block.columns
    named = [
        (label, True) if symbol in UNKNOWN or (symbol == label and has_labels) else (symbol, False)
        for symbol, label in zip(symbols, labels, strict=True)
    ]
    formula = formula_elements(block.value(blocks.FORMULA))
    charges = _listed_charges(block)
    known: dict[tuple[str, bool], list[Species] | Unnamed] = {}
    for key in set(named):
        try:
            known[key] = species_of(key[0], formula, charges, key[1])
        except Unnamed as error:
            known[key] = error
    sources, rows = [], []
    if known and all(isinstance(species, list) and len(species) == 1 for species in known.values()):
        return np.arange(len(named)), [known[key][0] for key in named]  # type: ignore[index]
    for site, key in enumerate(named):
        species = known[key]
        if isinstance(species, Unnamed):
            if is_placeholder(key[0]) and _shares_its_place(site, frac, occupancy):
                continue  # a vacancy
            raise Unreadable(f"{species} (site {labels[site]:.40})", "unknown element")
        for each in species:
            sources.append(site)
            rows.append(each)
    if not rows:
        raise Unreadable("no sites (none is occupied)", "no sites")
    return np.array(sources), rows


def _shares_its_place(site: int, frac: np.ndarray, occupancy: np.ndarray) -> bool:
    """Whether a partly occupied site has the coordinates of another."""
    return bool(occupancy[site] < 1 and (abs(frac - frac[site]) < 1e-3).all(1).sum() > 1)


def formula_elements(text: str | None) -> frozenset[str]:
    """The symbols of elements and isotopes in a chemical formula; none without one."""
    return frozenset(re.findall("[A-Z][a-z]?", text or "")) & (NUMBERS.keys() | ISOTOPES.keys())


def _listed_charges(block: Block) -> dict[str, float]:
    listed = block.columns.get(blocks.CHARGED, ()), block.columns.get(blocks.CHARGES, ())
    charges = {symbol: gemmi.cif.as_number(text) for symbol, text in zip(*listed, strict=False)}
    return {symbol: charge for symbol, charge in charges.items() if np.isfinite(charge)}


def amount_on_place(sites: Sites) -> np.ndarray:
    """(rows,) occupancy of each row's place, summed over the rows with the same coordinates."""
    if (sites.occupancy == 1).all():
        return sites.occupancy
    place = np.unique(sites.frac, axis=0, return_inverse=True)[1].reshape(-1)
    return np.bincount(place, sites.occupancy)[place]


def merge_coincident_sites(
    sites: Sites, cell: np.ndarray, frac: np.ndarray, source: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge sites that are one place, although the file lists them apart.

    Sites that are symmetry images of others are dropped. Species whose occupancies add up to 1
    share a place if they are nearer than SAME.

    Args:
        sites: the listed sites.
        cell: (3, 3) lattice vectors as rows, angstrom.
        frac: (rows, 3) fractional coordinates of all images.
        source: (rows,) the listed site of each.

    Returns:
        Coordinates, listed sites and occupancies of the rows that are left.

    Raises:
        Unreadable: two atoms are in one place.
    """
    while True:
        pairs, distance = near_pairs(cell, frac)
        if not len(pairs):
            return frac, source, sites.occupancy[source]
        i, j = source[pairs].T
        crowded = sites.occupancy[i] + sites.occupancy[j] > CROWDED
        if not crowded.any():
            break
        equal = (i != j) & (distance < SAME)
        for column in (sites.numbers, sites.oxidation, sites.occupancy):
            equal &= column[i] == column[j]
        listed_apart = np.linalg.norm((sites.frac[i] - sites.frac[j]) @ cell, axis=1) > NEAR
        wrong = crowded & ~(equal & listed_apart)
        if wrong.any():
            k = int(np.argmax(wrong))
            a, b = sites.labels[i[k]], sites.labels[j[k]]
            raise Unreadable(
                f"two atoms in one place ({shown(a)[1:-1]} and {shown(b)[1:-1]}, "
                f"{distance[k]:.3f} A apart)",
                "two atoms in one place",
            )
        keep = ~np.isin(source, j[crowded])
        frac, source = frac[keep], source[keep]
    for a, b in pairs[distance < SAME].tolist():
        frac[b] = frac[a]
    occupancy = sites.occupancy[source]
    place = np.unique(frac, axis=0, return_inverse=True)[1].reshape(-1)
    total = np.bincount(place, occupancy)[place]
    if total.max() > CROWDED:
        label = sites.labels[source[np.argmax(total)]]
        raise Unreadable(f"two atoms in one place ({shown(label)[1:-1]})", "two atoms in one place")
    return frac, source, occupancy / np.maximum(total, 1)
