"""A crystal's cell in three dimensions, its sites coloured by a value; needs plotly."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

import gemmi
import numpy as np

from sitenet.crystal.elements import SYMBOLS
from sitenet.report.html_page import plotly
from sitenet.report.plots import GREY

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from sitenet.crystal.crystal import Crystal

NEAR = 1e-3  # fractional; sites as near to a face are drawn on the opposite one too
BOND = 1.15  # sites are joined up to so many times the sum of their covalent radii
MOST_JOINED = 800  # drawn sites up to which bonds are looked for


def cell_view(crystal: Crystal, values: Mapping[str, np.ndarray], label: str) -> Figure:
    """Draw a cell that can be turned, with a menu of what colours its sites.

    Args:
        crystal: what to draw.
        values: (sites,) values by the name of the menu's entry.
        label: what the values are, beside the colour bar.
    """
    go = plotly("graph_objects")
    site, frac = _drawn_sites(crystal.frac)
    position = frac @ crystal.cell
    symbols = [SYMBOLS[z] for z in crystal.numbers[site]]
    radius = np.array([gemmi.Element(s).covalent_r for s in symbols])
    view = go.Figure()
    line = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    edges = _segments(*_edges(crystal.cell))
    view.add_scatter3d(**edges, **line, line={"color": GREY, "width": 2})
    view.add_scatter3d(
        **_segments(*_bonds(position, radius)),
        **line,
        line={"color": "#b9c0c8", "width": 5},
    )
    view.add_scatter3d(
        **_coordinates((1 + 1 / np.linalg.norm(crystal.cell, axis=1))[:, None] * crystal.cell),
        mode="text",
        text=["a", "b", "c"],
        textfont={"color": GREY},
        hoverinfo="skip",
        showlegend=False,
    )
    entries = {name: _colours(value[site]) for name, value in values.items()}
    view.add_scatter3d(
        **_coordinates(position),
        mode="markers+text",
        text=symbols,
        textposition="top center",
        customdata=np.column_stack([site, crystal.frac[site].round(4)]),
        hovertemplate="%{text} %{customdata[0]}<br>%{customdata[1]}, %{customdata[2]}, "
        "%{customdata[3]}<br>" + label + " %{marker.color:.3f}<extra></extra>",
        showlegend=False,
        marker={
            "size": (10 + 12 * radius / radius.max()).round(1).tolist(),
            "opacity": 1,
            "line": {"color": "#1c2228", "width": 1},
            "colorscale": "Viridis",
            "colorbar": {"title": {"text": label, "side": "right"}, "thickness": 14, "len": 0.8},
            **next(iter(entries.values())),
        },
    )
    sites = len(view.data) - 1
    buttons = [
        {
            "label": name,
            "method": "restyle",
            "args": [{f"marker.{key}": [value] for key, value in entry.items()}, [sites]],
        }
        for name, entry in entries.items()
    ]
    corners = np.concatenate([_edges(crystal.cell)[1], np.zeros((1, 3))])
    low, high = corners.min(0) - 1, corners.max(0) + 1
    size = (high - low) / (high - low).max()
    view.update_layout(
        height=560,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1, "yanchor": "top"}],
        scene={
            **{
                f"{axis}axis": {"visible": False, "range": [low[k], high[k]]}
                for k, axis in enumerate("xyz")
            },
            "aspectmode": "manual",
            "aspectratio": dict(zip("xyz", 1.5 * size, strict=True)),
            "camera": {
                "projection": {"type": "orthographic"},
                "eye": {"x": 1.5, "y": 0.7, "z": 0.5},
            },
        },
    )
    return view


def _colours(values: np.ndarray) -> dict[str, object]:
    """Colours and their range, which is not so narrow that rounding shows."""
    low, high = values.min(), values.max()
    middle, half = (low + high) / 2, max((high - low) / 2, 0.02 * abs(low + high), 1e-6)
    return {"color": values.tolist(), "cmin": middle - half, "cmax": middle + half}


def _drawn_sites(frac: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sites in the cell and on all its faces: their numbers and fractional coordinates."""
    inside = frac - np.floor(frac + NEAR)  # from -NEAR to 1 - NEAR
    site, at = [], []
    for shift in product((0, 1), repeat=3):
        on_face = (inside < NEAR) | (np.array(shift) == 0)
        drawn = np.flatnonzero(on_face.all(1))
        site.append(drawn)
        at.append(inside[drawn] + shift)
    return np.concatenate(site), np.concatenate(at)


def _bonds(position: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the lines between joined sites begin and end: at their rims, not in their middles,
    which lines in front would cut through."""
    if len(position) > MOST_JOINED:
        return np.zeros((0, 3)), np.zeros((0, 3))
    distance = np.linalg.norm(position[:, None] - position, axis=-1)
    near = distance < BOND * (radius[:, None] + radius)
    i, j = np.nonzero(np.triu(near, 1))
    shortened = 0.15 * (position[j] - position[i])
    return position[i] + shortened, position[j] - shortened


def _edges(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array(list(product((0, 1), repeat=3)))
    pairs = [(a, b) for a in corners for b in corners if (b - a).sum() == 1 and (b >= a).all()]
    begin, end = np.array(pairs).swapaxes(0, 1)
    return begin @ cell, end @ cell


def _segments(begin: np.ndarray, end: np.ndarray) -> dict[str, list[float | None]]:
    """Separate lines as one trace: None ends each."""
    lines = np.stack([begin, end, np.full_like(begin, np.nan)], 1).reshape(-1, 3)
    return _coordinates(lines)


def _coordinates(points: np.ndarray) -> dict[str, list[float | None]]:
    columns = points.round(4).T.tolist()
    return {a: [x if x == x else None for x in c] for a, c in zip("xyz", columns, strict=True)}
