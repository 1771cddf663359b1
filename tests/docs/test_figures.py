"""Every page gives the figures of the cards, and the cards those of the shipped weights."""

import re
from types import SimpleNamespace

import pytest
import weights_page
from conftest import ROOT
from tasks_list import read_tasks

from sitenet.model.checkpoint import read_metadata, shipped_weights

NAMES = list(shipped_weights())
TASKS = read_tasks()


def text(path):
    """The text of a page, in one line."""
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


def find(pattern, page):
    """The only match of a pattern in a page, as its groups."""
    (groups,) = re.findall(pattern, page)
    return groups


def card(name):
    """The figures of a card, as they are printed."""
    page = text(f"docs/models/{name}.md")
    trained, valid = find(r"trained on \| ([\d,]+) crystals; ([\d,]+) validation crystals", page)
    mae, mean = find(r"\*\*([\d.]+) eV\S*\*\*; predicting the mean everywhere: ([\d.]+)", page)
    interval, coverage = find(
        r"±([\d.]+) eV\S* (?:on average )?at 90 %, which covers ([\d.]+)%", page
    )
    return SimpleNamespace(
        trained=trained,
        valid=valid,
        tested=find(r"tested on \| ([\d,]+) crystals", page),
        mae=mae,
        mae_of_mean=mean,
        interval=interval,
        coverage=coverage,
        inside=find(r"`like_training`: yes \| \d+ \| ([\d.]+)", page),
        outside=find(r"`like_training`: no \| \d+ \| ([\d.]+)", page),
    )


def facts_of(name):
    return read_metadata(shipped_weights()[name])["metadata"]


def by_bench(name):
    """Whether bench/tasks.py trained, tested and shipped weights."""
    return "tested" in facts_of(name)


def scores(name, split):
    """Scores of shipped weights, of their only target; on the test crystals those of the tested
    model, if it is another one; none where there are none."""
    facts = facts_of(name)
    facts = facts["tested"] if split == "test" and "tested" in facts else facts
    (only,) = facts["scores"].get(split, {"": {}}).values()
    return only


@pytest.fixture
def gap():
    return card("mp-gap")


@pytest.fixture
def energy():
    return card("mp-eform")


@pytest.mark.parametrize("name", NAMES)
def test_the_card_gives_the_scores_of_the_metadata(name):
    test, page = scores(name, "test"), text(f"docs/models/{name}.md")
    assert test or name == "mp-gap"  # whose shipped weights learned from the test crystals
    if test:
        assert f"tested on | {test['crystals']:,} crystals" in page
    if "mae" in test:
        assert f"everywhere: {test['mae_of_mean']:.3f}, the median: " in page
        assert f"**{test['mae']:.3f}" in page
    if "interval" in test:
        (numbers,) = re.findall(r"±([\d.]+) .*?at 90 %, which covers ([\d.]+)%", page)[:1]
        assert numbers == (f"{test['interval']:.3f}", f"{100 * test['coverage']:.1f}")
    if "roc_auc" in test:
        assert f"**{test['roc_auc']:.3f}**" in page


@pytest.mark.parametrize("name", NAMES)
def test_the_cards_give_the_format_and_inputs_of_what_ships(name):
    header = read_metadata(shipped_weights()[name])
    page = text(f"docs/models/{name}.md")
    assert f"| file | checkpoint format {header['format']}, " in page
    ignored = "Oxidation states in a file do not change the prediction" in page
    assert ignored is not header["uses_oxidation"]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_knows_what_the_shipped_weights_learned_from(name):
    crystals, page = facts_of(name)["crystals"], text(f"docs/models/{name}.md")
    assert f"; {crystals['valid']:,} validation crystals" in page
    if not crystals["test"]:
        assert f"the shipped weights | trained on {crystals['train']:,} crystals" in page


def test_the_readme_gives_the_figures_of_the_cards(gap, energy):
    page = text("README.md")
    assert f"{gap.tested} unseen crystals" in page
    assert f"MAE {gap.mae} eV; {gap.coverage} % lie within the 90 % interval" in page
    assert f"{energy.tested} unseen crystals" in page
    assert f"MAE {energy.mae} eV/atom; {energy.coverage} % within the 90 % interval" in page


def test_the_benchmarks_give_the_figures_of_the_cards(gap, energy):
    page = text("docs/benchmarks.md")
    line = f"| {gap.tested} | {gap.mae} eV | {gap.mae_of_mean} eV | {gap.coverage} % |"
    assert f"| `mp-gap`, tested model (three folds) {line}" in page
    assert f"| {energy.mae} eV/atom | {energy.mae_of_mean} eV/atom | {energy.coverage} % |" in page
    assert f"interval is ±{gap.interval} eV wide on average" in page
    shipped = scores("mp-gap", "valid")
    assert f"On the {gap.valid} validation crystals its error is {shipped['mae']:.3f} eV" in page
    assert f"interval ±{shipped['interval']:.2f} eV" in page


def test_the_page_on_uncertainty_gives_the_figures_of_the_cards(gap, energy):
    page = text("docs/uncertainty.md")
    assert f"{gap.coverage} % for `mp-gap` and {energy.coverage} % for `mp-eform`" in page
    assert f"{gap.inside} eV for `yes` and {gap.outside} eV for `no`" in page
    assert f"{energy.inside} and {energy.outside} eV/atom" in page


def test_the_record_of_experiments_ends_at_what_ships(gap):
    if by_bench("mp-gap") or by_bench("mp-eform"):
        pytest.skip("bench/results/tasks.md has the results of these weights")
    page = text("bench/results/accuracy.md")
    shipped = scores("mp-gap", "valid")["mae"]
    assert f"| **`mp-gap`, as it ships**: ensemble of the two | | **{shipped:.3f}** |" in page
    assert f"the tested model of the card** | | 0.191 | **{gap.mae}** |" in page
    energies = [scores("mp-eform", split)["mae"] for split in ("valid", "test")]
    assert "| {:.4f} | **{:.4f}** |".format(*energies) in page


def test_the_results_of_the_bench_are_those_of_what_ships():
    names = [name for name in NAMES if by_bench(name)]
    page = text("bench/results/tasks.md") if names else ""
    for name in names:
        test = scores(name, "test")
        shown = test["roc_auc" if TASKS[name].is_class else TASKS[name].measure]
        written = f"{shown:.4f}" if "roc_auc" in test else f"{shown:.3g}" if shown < 100 else shown
        assert f"| {name} | **{written}**" in page


def test_the_readme_compares_with_peers_as_the_benchmarks_do():
    rows = re.findall(r"^\| (?:sitenet, `(sphere)`|(\w+) \(\w+\)) \|(.*)\|$", benchmarks(), re.M)
    rates = {ours or peer: [x.strip() for x in cells.split("|")] for ours, peer, cells in rows}
    assert rates.keys() == {"sphere", "CGCNN", "MEGNet", "M3GNet", "ALIGNN"}
    page = text("README.md")
    for column in (3, 4):  # CIF to prediction, training
        ours, *peers = (f"{name} {cells[column]}" for name, cells in rates.items())
        assert f"| {ours.split()[1]} crystals/s ({', '.join(peers)}) |" in page


def test_the_readme_gives_the_training_step_of_the_benchmarks():
    (fast,) = re.findall(
        r"^\| training step.*\| ([\d.]+)x \|.*\| ([\d.]+)x \|$", benchmarks(), re.M
    )
    old = re.findall(r"([\d.]+)x for the training step", benchmarks())
    single, bfloat = (round(float(x)) for x in fast)
    words = f"{float(*old):.0f} to {single} times faster in float32, {bfloat} times with bfloat16"
    assert words in text("README.md")


def benchmarks():
    return (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_the_page_of_all_weights_is_what_its_bench_writes(tmp_path):
    weights_page.write_page(tmp_path / "index.md")
    written = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert written == (ROOT / "docs/models/index.md").read_text(encoding="utf-8")
    assert all(f"| [{name}]({name}.md): " in written for name in NAMES)
