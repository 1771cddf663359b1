"""Plots are written whole, say what they should, and refuse what cannot be drawn."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from sitenet.inference.attention_histograms import DistanceHistogram
from sitenet.report import plots

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"


def texts(figure):
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("crystals", [1, 2, 300, plots.MANY, plots.MANY + 1, 20_000])
def test_parity(tmp_path, crystals):
    rng = np.random.default_rng(0)
    truth = np.abs(rng.normal(0, 2, crystals))
    predicted = truth + rng.normal(0, 0.3, crystals)
    figure = plots.parity(truth, predicted, tmp_path / "parity.png", name="band gap", unit="eV")
    assert (tmp_path / "parity.png").read_bytes().startswith(PNG)
    assert [p.name for p in tmp_path.iterdir()] == ["parity.png"]
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


def test_parity_leaves_out_what_is_not_known(tmp_path):
    figure = plots.parity([1.0, np.nan, 3.0], [1.0, 2.0, np.inf], tmp_path / "p.svg")
    assert "1 crystal" in texts(figure)
    assert b"<svg" in (tmp_path / "p.svg").read_bytes()


def test_parity_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        plots.parity([1, 2], [1, 2, 3], tmp_path / "p.png")
    with pytest.raises(ValueError, match="no crystal"):
        plots.parity([np.nan], [1], tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_learning_curve(tmp_path):
    history = [
        {"epoch": e, "train_mae": 1 / (e + 1), "valid_mae": None if e % 2 else 2 / (e + 2)}
        for e in range(9)
    ]
    figure = plots.learning_curve(history, tmp_path / "curve.png", unit="eV")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
    axes = figure.axes[0]
    lines = {line.get_label(): line.get_xdata() for line in axes.lines}
    assert list(lines["training"]) == list(range(9))
    assert list(lines["validation"]) == [0, 2, 4, 6, 8]
    assert "0.2" in texts(figure)  # the best validation error
    assert axes.get_yscale() == "log"


def test_learning_curve_of_one_epoch_or_none(tmp_path):
    figure = plots.learning_curve([{"epoch": 1, "train_mae": 0.5}], tmp_path / "curve.png")
    assert figure.axes[0].get_yscale() == "linear"
    with pytest.raises(ValueError, match="no epoch"):
        plots.learning_curve([], tmp_path / "curve.png")


def histogram_of(pairs, copies=1):
    """Random pairs at random distances, of a model with 2 blocks and 3 heads."""
    rng = np.random.default_rng(0)
    histogram = DistanceHistogram(2, 3)
    distance = 1 + 11 * rng.random(pairs)
    distance[: pairs // 20] = 0
    weights = 10 ** rng.normal(-2 - distance[:, None, None] / 10, 0.3, (pairs, 2, 3))
    histogram.add(distance, np.minimum(weights, 1), np.full(pairs, copies))
    return SimpleNamespace(by_distance=histogram, members=2)


def test_attention_of_few_pairs_is_drawn_point_by_point(tmp_path):
    e = histogram_of(400)
    figure = plots.plot_attention(e, tmp_path / "attention.png", title="a crystal")
    assert (tmp_path / "attention.png").read_bytes().startswith(PNG)
    assert figure.get_suptitle() == "a crystal"
    assert len(figure.axes) == 2 * 2 * 3
    for block, head in np.ndindex(2, 3):
        own, others = figure.axes[6 * block + 2 * head :][:2]
        assert others.get_title() == f"member {block + 1}, block 1, head {head + 1}"
        (points,) = others.collections
        assert len(points.get_offsets()) == np.count_nonzero(e.by_distance.counts[block, head])
        (points,) = own.collections
        assert len(points.get_offsets()) == np.count_nonzero(e.by_distance.self_counts[block, head])


@pytest.mark.parametrize("pairs, copies, bins", [(20_000, 1, 100), (100_000, 20, 500)])
def test_attention_of_many_pairs_is_counted(pairs, copies, bins):
    figure = plots.plot_attention(histogram_of(pairs, copies))
    assert len(figure.axes) == 2 * 2 * 3 + 1  # the colour bar
    own, others = figure.axes[:2]
    (image,) = others.collections
    shares = image.get_array().filled(0)
    assert shares.shape[0] == bins
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(own.collections[0].get_array().filled(0).sum(0), 1, atol=1e-6)
    assert (image.norm.vmin, image.norm.vmax) == (1e-4, 1)
    assert others.get_ylim() == (1e-6, 1)
    (mean,) = others.lines
    x, y = mean.get_data()
    # The mean of 10^normal(m, 0.3) is 10^m times exp((0.3 ln 10)^2 / 2).
    want = 10 ** (-2 - x / 10) * np.exp((0.3 * np.log(10)) ** 2 / 2)
    np.testing.assert_allclose(y[1:-1], want[1:-1], rtol=0.15)


def test_columns_hold_equally_many_pairs():
    rng = np.random.default_rng(0)
    pairs = np.zeros(1900)
    pairs[100:600] = rng.integers(50, 100, 500)
    pairs[900:1000] = rng.integers(50, 100, 100)
    begin, end = plots._columns(pairs, 20)
    held = [pairs[a:b].sum() for a, b in zip(begin, end, strict=True)]
    assert len(begin) == 20
    np.testing.assert_allclose(held, pairs.sum() / 20, atol=200)
    assert sum(held) == pairs.sum() and begin[0] == 100 and end[-1] == 1000


def test_attention_without_pairs(tmp_path):
    histogram = DistanceHistogram(1, 1)
    histogram.add(np.zeros(1), np.ones((1, 1, 1)), np.ones(1, dtype=int))
    with pytest.raises(ValueError, match="no pairs but self pairs"):
        plots.plot_attention(SimpleNamespace(by_distance=histogram, members=1), tmp_path / "a.png")


def test_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'sitenet\[plot\]'"):
        plots.parity([1], [1], tmp_path / "p.png")


@pytest.mark.parametrize("decades", [2, 18])
def test_labels_of_a_long_logarithmic_axis_do_not_overlap(decades):
    history = [{"epoch": k, "train_mae": 10.0 ** -(decades * k / 5)} for k in range(6)]
    figure = plots.learning_curve(history)
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    labels = [t for t in figure.axes[0].yaxis.get_major_ticks() if low <= t.get_loc() <= high]
    boxes = sorted((t.label1.get_window_extent() for t in labels), key=lambda box: box.y0)
    assert 3 <= len(boxes) and all(a.y1 < b.y0 for a, b in itertools.pairwise(boxes))


def test_does_without_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plots.parity([1, 2], [1, 2], tmp_path / "p.png")
