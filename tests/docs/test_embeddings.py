"""The page on embeddings gives what its snippets give on all crystals of the example."""

import contextlib
import io
import re

import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT

import sitenet

PAGE = ROOT / "docs" / "embeddings.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


@pytest.mark.slow
def test_the_uses_of_encodings_give_the_page_s_results(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    model = sitenet.load("mp-gap")
    sitenet.encode_files(model, [ROOT / "examples" / "semiconductors"], "encodings.npz")
    names: dict = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in SNIPPETS:
            exec(compile(code, "embeddings.md", "exec"), names)
    lines = printed.getvalue().splitlines()
    neighbours = [line.split() for line in lines if " at distance " in line]
    assert neighbours[0][0] == "ZnSe_zincblende"  # itself
    assert float(neighbours[0][-1]) < 1e-3 < float(neighbours[1][-1])
    # A neighbour's gap is nearer to the crystal's own than two crystals' are on average.
    gaps = names["gaps"]
    apart = np.abs(gaps[:, None] - gaps).mean()
    assert all(abs(float(words[1]) - float(neighbours[0][1])) < apart for words in neighbours)
    (line,) = (line for line in lines if "predicting the median" in line)
    crystals, error, baseline = re.findall(r"[\d.]+", line)
    assert crystals == "200"
    assert f"the error is {error} eV, against {baseline} eV for the median" in PAGE.read_text()
    assert float(error) < float(baseline) / 2
    picture, shown = (
        matplotlib.image.imread(path)
        for path in (tmp_path / "map.png", ROOT / "docs" / "images" / "embedding_map.png")
    )
    assert picture.shape == shown.shape and picture.std() > 0.05
