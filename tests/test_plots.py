"""Plots are written whole, say what they should, and refuse what cannot be drawn."""

import sys

import numpy as np
import pytest

from sitenet import plots

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are written."""
    figures = []
    write = plots._write
    monkeypatch.setattr(plots, "_write", lambda f, path: (figures.append(f), write(f, path)))
    return figures


def texts(figure):
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("crystals", [1, 2, 300, plots.MANY, plots.MANY + 1, 20_000])
def test_parity(tmp_path, drawn, crystals):
    rng = np.random.default_rng(0)
    truth = np.abs(rng.normal(0, 2, crystals))
    predicted = truth + rng.normal(0, 0.3, crystals)
    plots.parity(truth, predicted, tmp_path / "parity.png", name="band gap", unit="eV")
    assert (tmp_path / "parity.png").read_bytes().startswith(PNG)
    assert [p.name for p in tmp_path.iterdir()] == ["parity.png"]
    (figure,) = drawn
    assert f"MAE {np.abs(predicted - truth).mean():.3g} eV" in texts(figure)
    assert f"{crystals:,} crystal" in texts(figure)
    assert ("R²" in texts(figure)) == (crystals > 1)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "true band gap (eV)"
    assert axes.get_xlim() == axes.get_ylim()
    (drawing,) = axes.collections
    if crystals > plots.MANY:
        assert drawing.get_array().sum() == crystals
        assert (drawing.norm.vmin, drawing.norm.vmax) == (1, 1000)
    else:
        assert len(drawing.get_offsets()) == crystals


def test_parity_leaves_out_what_is_not_known(tmp_path, drawn):
    plots.parity([1.0, np.nan, 3.0], [1.0, 2.0, np.inf], tmp_path / "p.svg")
    assert "1 crystal" in texts(drawn[0])
    assert b"<svg" in (tmp_path / "p.svg").read_bytes()


def test_parity_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        plots.parity([1, 2], [1, 2, 3], tmp_path / "p.png")
    with pytest.raises(ValueError, match="no crystal"):
        plots.parity([np.nan], [1], tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_learning_curve(tmp_path, drawn):
    history = [
        {"epoch": e, "train_mae": 1 / (e + 1), "valid_mae": None if e % 2 else 2 / (e + 2)}
        for e in range(9)
    ]
    plots.learning_curve(history, tmp_path / "curve.png", unit="eV")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
    axes = drawn[0].axes[0]
    lines = {line.get_label(): line.get_xdata() for line in axes.lines}
    assert list(lines["training"]) == list(range(9))
    assert list(lines["validation"]) == [0, 2, 4, 6, 8]
    assert "0.2" in texts(drawn[0])  # the best validation error
    assert axes.get_yscale() == "log"


def test_learning_curve_of_one_epoch_or_none(tmp_path, drawn):
    plots.learning_curve([{"epoch": 1, "train_mae": 0.5}], tmp_path / "curve.png")
    assert drawn[0].axes[0].get_yscale() == "linear"
    with pytest.raises(ValueError, match="no epoch"):
        plots.learning_curve([], tmp_path / "curve.png")


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), plots.new_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'sitenet\[plot\]'"):
        plots.parity([1], [1], tmp_path / "p.png")


def test_does_without_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plots.parity([1, 2], [1, 2], tmp_path / "p.png")
