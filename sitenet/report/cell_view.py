"""A crystal's cell in three dimensions, its sites coloured by a value; needs plotly."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import gemmi
import numpy as np

from sitenet.crystal.disorder import find_places
from sitenet.crystal.elements import SYMBOLS
from sitenet.report.packages import plotly
from sitenet.report.plots import GREY

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from sitenet.crystal.crystal import Crystal

NEAR = 1e-3  # fractional; sites this close to a face are drawn on the opposite one too
BOND = 1.15  # sites are joined up to this multiple of the sum of their covalent radii
MOST_JOINED = 800  # drawn sites above which bonds are not searched
LINE = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
BOND_COLOUR, DARK = "#b9c0c8", "#1c2228"

Entries = dict[
    str, dict[str, Any]
]  # name in the menu -> colours of the drawn sites and their range


def cell_view(crystal: Crystal, values: Mapping[str, np.ndarray], label: str) -> Figure:
    """Draw a cell that can be turned, with a menu of what colours its sites.

    Args:
        crystal: The cell to draw.
        values: Name of the menu's entry -> (sites,) values. Species that share a place are one
            site.
        label: What the values are, beside the colour bar.
    """
    view = plotly("graph_objects").Figure()
    frac = crystal.frac[find_places(crystal).first]
    site, position = _drawn_sites(frac)
    position = position @ crystal.cell
    labels, radius = crystal.site_labels(), _radii(crystal)[site]
    _add_edges(view, crystal.cell)
    bonds = _segments(*_bonds(position, radius))
    view.add_scatter3d(**bonds, **LINE, line={"color": BOND_COLOUR, "width": 5})
    entries = {name: _colours(value[site]) for name, value in values.items()}
    first = next(iter(entries.values()))
    view.add_scatter3d(
        **_coordinates(position),
        mode="markers+text",
        text=[labels[k] for k in site],
        textposition="top center",
        customdata=np.column_stack([site, frac[site].round(4)]),
        hovertemplate="%{text} %{customdata[0]}<br>%{customdata[1]}, %{customdata[2]}, "
        "%{customdata[3]}<br>" + label + " %{marker.color:.3f}<extra></extra>",
        showlegend=False,
        marker=_marker(radius, label) | first,
    )
    _set_layout(view, crystal.cell, entries)
    return view


def _radii(crystal: Crystal) -> np.ndarray:
    """Covalent radius of each site, in angstrom; of the first of several species."""
    numbers = crystal.numbers[find_places(crystal).first]
    return np.array([gemmi.Element(SYMBOLS[number]).covalent_r for number in numbers])


def _marker(radius: np.ndarray, label: str) -> dict[str, Any]:
    return {
        "size": (10 + 12 * radius / radius.max()).round(1).tolist(),
        "opacity": 1,
        "line": {"color": DARK, "width": 1},
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": label, "side": "right"}, "thickness": 14, "len": 0.8},
    }


def _add_edges(view: Figure, cell: np.ndarray) -> None:
    """Add the edges of the cell and the names of its vectors."""
    view.add_scatter3d(**_segments(*_edges(cell)), **LINE, line={"color": GREY, "width": 2})
    beyond = 1 + 1.4 / np.linalg.norm(cell, axis=1)[:, None]  # 1.4 angstrom past the corners
    view.add_scatter3d(
        **_coordinates(beyond * cell),
        mode="text",
        text=["a", "b", "c"],
        textfont={"color": GREY},
        hoverinfo="skip",
        showlegend=False,
    )


def _set_layout(view: Figure, cell: np.ndarray, entries: Entries) -> None:
    """Set equal scales of the axes, the camera, and the menu that colours the last trace."""
    last = len(view.data) - 1
    buttons = [
        {
            "label": name,
            "method": "restyle",
            "args": [{f"marker.{key}": [value] for key, value in entry.items()}, [last]],
        }
        for name, entry in entries.items()
    ]
    corners = np.concatenate([_edges(cell)[1], np.zeros((1, 3))])
    low, high = corners.min(0) - 1.4, corners.max(0) + 1.4
    size = (high - low) / (high - low).max()
    axes = {
        f"{axis}axis": {"visible": False, "range": [low[k], high[k]]}
        for k, axis in enumerate("xyz")
    }
    view.update_layout(
        height=560,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1, "yanchor": "top"}],
        scene={
            **axes,
            "aspectmode": "manual",
            "aspectratio": dict(zip("xyz", 1.5 * size, strict=True)),
            "camera": {
                "projection": {"type": "orthographic"},
                "eye": {"x": 1.5, "y": 0.7, "z": 0.5},
            },
        },
    )


def _colours(values: np.ndarray) -> dict[str, Any]:
    """Colours and their range, which is wide enough that rounding does not show."""
    low, high = values.min(), values.max()
    middle, half = (low + high) / 2, max((high - low) / 2, 0.02 * abs(low + high), 1e-6)
    return {"color": values.tolist(), "cmin": middle - half, "cmax": middle + half}


def _drawn_sites(frac: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and fractional coordinates of the sites in the cell and on all its faces."""
    inside = frac - np.floor(frac + NEAR)  # from -NEAR to 1 - NEAR
    sites, positions = [], []
    for shift in product((0, 1), repeat=3):
        on_face = (inside < NEAR) | (np.array(shift) == 0)
        drawn = np.flatnonzero(on_face.all(1))
        sites.append(drawn)
        positions.append(inside[drawn] + shift)
    return np.concatenate(sites), np.concatenate(positions)


def _bonds(position: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the lines between joined sites, cut short at both sites: a line that reached the
    middle of one would cross it when it is nearer to the eye."""
    if len(position) > MOST_JOINED:
        return np.zeros((0, 3)), np.zeros((0, 3))
    distance = np.linalg.norm(position[:, None] - position, axis=-1)
    near = distance < BOND * (radius[:, None] + radius)
    i, j = np.nonzero(np.triu(near, 1))
    shortened = 0.15 * (position[j] - position[i])
    return position[i] + shortened, position[j] - shortened


def _edges(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the cell's twelve edges."""
    corners = np.array(list(product((0, 1), repeat=3)))
    pairs = [(a, b) for a in corners for b in corners if (b - a).sum() == 1 and (b >= a).all()]
    begin, end = np.array(pairs).swapaxes(0, 1)
    return begin @ cell, end @ cell


def _segments(begin: np.ndarray, end: np.ndarray) -> dict[str, list[float | None]]:
    """Separate lines as one trace, in which None ends each."""
    lines = np.stack([begin, end, np.full_like(begin, np.nan)], 1).reshape(-1, 3)
    return _coordinates(lines)


def _coordinates(points: np.ndarray) -> dict[str, list[float | None]]:
    columns = points.round(4).T.tolist()
    return {a: [x if x == x else None for x in c] for a, c in zip("xyz", columns, strict=True)}
