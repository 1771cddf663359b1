"""The map of substitutions and the strain curve of reports."""

import numpy as np
import pytest

pytest.importorskip("plotly")

from sitenet.crystal.crystal import Crystal
from sitenet.inference.changes import Change, Changes
from sitenet.inference.table import Prediction
from sitenet.model.sitenet import Target
from sitenet.report.changes import REMOVED, add_changes, strain_curve, substitution_map
from sitenet.report.html_page import Page

SALT = Crystal(np.eye(3) * 4, [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17])


def predicted(value, unlike="", interval=(0.0, 9.0)):
    return Prediction("", "", [value], [interval[0]], [interval[1]], unlike, "")


def changes(unit="eV", each=None):
    if each is None:
        each = [
            Change("substitute", 0, "Na", "K", 0.0, predicted(3.5)),
            Change("substitute", 0, "Na", "Li", 0.0, predicted(2.0, "Li <odd>")),
            Change("remove", 1, "Cl", "", 0.0, predicted(1.0)),
            Change("strain", None, "", "", 0.02, predicted(2.5, "long bonds")),
            Change("strain", None, "", "", -0.02, predicted(3.25)),
        ]
    return Changes(SALT, [0, 1], [Target("gap", unit)], predicted(3.0), each)


def test_map():
    heat, crosses = substitution_map(changes()).data
    assert list(heat.x) == ["Li", "K", REMOVED] and list(heat.y) == ["Na 0", "Cl 1"]
    assert list(map(list, heat.z)) == [[-1.0, 0.5, None], [None, None, -2.0]]
    assert list(map(list, heat.text)) == [["-1.00", "+0.50", ""], ["", "", "-2.00"]]
    assert (heat.zmin, heat.zmax) == (-2.0, 2.0)
    assert (list(crosses.x), list(crosses.y)) == (["Li"], ["Na 0"])
    assert "Li instead of Na 0<br>2 (-1) eV" in heat.customdata[0][0]


def test_wide_maps_hold_no_numbers():
    names = "Li Be B C N O F Mg Al Si P S Cl K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga".split()
    each = [Change("substitute", 0, "Na", name, 0.0, predicted(3.0)) for name in names]
    (heat,) = substitution_map(changes(each=each)).data
    assert len(heat.x) == 26 and set(heat.text[0]) == {""}
    assert heat.zmax > 0  # although nothing changes


def test_strain():
    *band, line = strain_curve(changes()).data
    assert list(line.x) == [-2.0, 0.0, 2.0] and list(line.y) == [3.25, 3.0, 2.5]
    assert line.marker.color[0] == line.marker.color[1] != line.marker.color[2] == "white"
    assert len(band) == 2
    without = changes()
    without.unchanged = predicted(3.0, None, (None, None))
    assert len(strain_curve(without).data) == 1


@pytest.mark.parametrize("kinds", [("substitute", "remove"), ("strain",)])
def test_reports_hold_what_there_is(tmp_path, kinds):
    kept = [change for change in changes().each if change.kind in kinds]
    page = Page("salt")
    add_changes(page, changes("<b>eV</b>", kept))
    page.write(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert ("element on the site" in text) == ("remove" in kinds)
    assert ("strain of all lengths" in text) == ("strain" in kinds)
    assert "<b>eV" not in text.split("</style>")[1].split("<h1>")[1]
