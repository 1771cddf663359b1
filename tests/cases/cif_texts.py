"""The text of small CIFs."""

FRACT = ("fract_x", "fract_y", "fract_z")
MIXED = "Na1 Na+ 0 0 0 0.75\nK1 K+ 0 0 0 0.25\nCl1 Cl- 0.5 0.5 0.5 0.9"
WITH_OCCUPANCY = ("label", "type_symbol", *FRACT, "occupancy")


def cif(
    sites="Na1 Na 0 0 0\nCl1 Cl 0.5 0.5 0.5",
    cell=(5.64, 5.64, 5.64, 90, 90, 90),
    symmetry="_symmetry_space_group_name_H-M 'F m -3 m'",
    tags=("label", "type_symbol", "fract_x", "fract_y", "fract_z"),
    name="NaCl",
    more="",
):
    """Return the text of a small CIF, by default rock salt."""
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{name}", symmetry, more]
    lines += [f"_cell_{n} {x}" for n, x in zip(names, cell, strict=False) if x is not None]
    lines += ["loop_", *(f"_atom_site_{tag}" for tag in tags), sites, ""]
    return "\n".join(lines)
