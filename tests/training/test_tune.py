"""A search for settings: its study, what it leaves, and how it resumes."""

import csv
import io
import json
import shlex
import shutil

import numpy as np
import pytest
import yaml
from rich.console import Console
from toy_crystals import SMALL, toy_dataset, write_folder

from sitenet.cli import app as cli
from sitenet.config import load_config
from sitenet.system.progress import Reporter
from sitenet.training import recipe
from sitenet.training.recipe import described, open_settings
from sitenet.training.search_space import SPACE, read_space
from sitenet.training.tune import tune

optuna = pytest.importorskip("optuna")

BASE = SMALL.replace(epochs=3, valid=0.3, last_activation="identity")
NARROW = {
    "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
    "blocks": {"low": 1, "high": 2},
    "hidden": [[5], [7]],
    "schedule": ["constant", "cosine"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("crystals")
    write_folder(path, 12)
    return path


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_finds_and_writes_the_best_config(folder, tmp_path):
    best = tune(folder, tmp_path, BASE, trials=4, space=NARROW, pruner="none")
    rows = rows_of(tmp_path / "trials.csv")
    assert [row["state"] for row in rows] == ["complete"] * 4
    errors = [float(row["valid_error"]) for row in rows]
    assert best.valid_error == min(errors) and best.number == errors.index(min(errors))
    assert load_config(best.path) == best.config == BASE.replace(**best.values)
    assert set(best.values) == set(NARROW) and best.trials == 4
    assert best.config.hidden in ((5,), (7,)) and best.config.blocks in (1, 2)
    assert len({row["learning_rate"] for row in rows}) == 4


@pytest.mark.slow
def test_is_reproducible_and_learns_as_train_does(folder, tmp_path):
    from sitenet.training.train import train

    first, second = (tune(folder, tmp_path / x, BASE, trials=2, space=NARROW) for x in "ab")
    assert (first.values, first.valid_error) == (second.values, second.valid_error)
    result = train(folder, None, first.path)
    assert min(entry["valid_error"] for entry in result.history) == first.valid_error


@pytest.mark.slow
def test_resumes_where_it_was_stopped(folder, tmp_path, monkeypatch):
    from sitenet.training import tune as module

    run, calls = module.train, []

    def interrupted(*arguments, **options):
        calls.append(options)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(module, "train", interrupted)
    options = {"trials": 4, "space": NARROW, "pruner": "none"}
    with pytest.raises(module.Stopped, match=r"2 trials are in .* resumes from there"):
        tune(folder, tmp_path, BASE, **options)
    assert tune(folder, tmp_path, BASE, **options).trials == 4
    assert len(calls) == 5
    assert tune(folder, tmp_path, BASE, **options).trials == 4  # nothing is left to do
    assert len(calls) == 5
    rates = [row["learning_rate"] for row in rows_of(tmp_path / "trials.csv")]
    assert len(set(rates)) == 5
    with pytest.raises(ValueError, match="a study with other data, config or space"):
        tune(folder, tmp_path, BASE, epochs=4, **options)


@pytest.mark.slow
def test_prunes_hopeless_trials(folder, tmp_path):
    """Trials that cannot beat the median are ended early."""
    space = {"learning_rate": {"low": 1e-9, "high": 1e-8, "log": True}}
    config = BASE.replace(epochs=8)
    tune(folder, tmp_path, config, trials=8, space=space, sampler="random")
    states = [row["state"] for row in rows_of(tmp_path / "trials.csv")]
    assert states[:5] == ["complete"] * 5 and "pruned" in states[5:]


def test_settings_that_cannot_be_are_given_up(folder, tmp_path):
    space = {"envelope": [True, False]}  # needs a reach
    best = tune(folder, tmp_path, BASE, trials=6, space=space, sampler="random")
    assert best.values == {"envelope": False}
    with pytest.raises(RuntimeError, match="no trial succeeded: envelope needs"):
        tune(folder, tmp_path / "none", BASE, trials=2, space={"envelope": [True]})


@pytest.mark.parametrize(
    "space, text",
    [
        ("learning_rate: {low: 1e-4, high: 1e-2}", None),
        ("lerning_rate: [1, 2]", "unknown field 'lerning_rate'"),
        ("blocks: 3", "blocks must be a list, or low and high"),
        ("blocks: {low: 3}", "blocks must be a list, or low and high"),
        ("blocks: {low: 3, high: 1}", "low must be below high"),
        ("hidden: {low: 3, high: 10}", "hidden is no number"),
        ("test: [0.1]", "unknown field 'test'"),
        ("[blocks]", "must hold `field:"),
        ("{", "is not a YAML file"),
    ],
)
def test_spaces_are_checked(tmp_path, space, text):
    path = tmp_path / "space.yaml"
    path.write_text(space)
    if text is None:
        assert read_space(path) == {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": False}}
        return
    with pytest.raises(ValueError, match=text):
        read_space(path)


def test_default_space_fits_the_paper():
    config = load_config("paper")
    for name, of in read_space(None).items():
        for value in of if isinstance(of, list) else (of["low"], of["high"]):
            config.replace(**{name: value})
    assert set(read_space(None)) == set(SPACE)


def test_needs_validation_crystals(folder, tmp_path):
    with pytest.raises(ValueError, match="valid must be above 0"):
        tune(folder, tmp_path, BASE, valid=0.0)


def test_processes_of_torchrun_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a trial runs in one process"):
        tune(folder, tmp_path, BASE)


def test_command(folder, tmp_path, capsys):
    config, space = tmp_path / "config.yaml", tmp_path / "space.yaml"
    config.write_text(yaml.safe_dump(BASE.to_dict()))
    space.write_text(yaml.safe_dump(NARROW))
    out_folder = tmp_path / "a folder"
    arguments = ["tune", folder, "--out", out_folder, "--config", config]
    arguments += ["--space", space, "--trials", "2", "--epochs", "2", "--target", "size_A"]
    arguments += ["--unit", "nm"]

    def run(arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, arguments)))
        assert not end.value.code
        return capsys.readouterr()

    out, err = run(arguments)
    assert "of 2: validation error" in out and "learning_rate" in out and "trial 1: " in err
    facts = json.loads(run([*arguments, "--json"])[0])
    assert facts["trials"] == 2 and facts["values"].keys() == NARROW.keys()
    # The printed command runs as it is, for the epochs of the config, not of the search.
    (command,) = [line for line in err.splitlines() if "sitenet train" in line]
    program, *words = shlex.split(command.partition("next: ")[2])
    assert program == "sitenet" and words[-4:] == ["--target", "size_A", "--unit", "nm"]
    run(words)
    metrics = (out_folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == BASE.training.epochs == 3


def test_the_best_config_follows_negative_targets(tmp_path):
    """If the search does not set the last activation."""
    data = toy_dataset(12)
    data.targets -= data.targets.mean()
    prepared = tmp_path / "data"
    write_folder(prepared, 12, table=None)
    rows = [f"{name},{y}" for name, y in zip(data.ids, data.targets[:, 0], strict=True)]
    (prepared / "targets.csv").write_text("\n".join(["id,y", *rows, ""]))
    config = SMALL.replace(epochs=1, valid=0.3)
    best = tune(prepared, tmp_path / "out", config, trials=1, space={"blocks": [1]})
    assert load_config(best.path) == best.config
    assert best.config.last_activation == "identity"


def test_the_best_config_leaves_open_what_the_search_chose_by_size(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "MOST_EPOCHS", 3)
    said = io.StringIO()
    reporter = Reporter(Console(file=said, width=1000))
    base = BASE.replace(epochs=None, batch_sites=0, batch_crystals=None)
    options = {"space": {"blocks": [1]}, "pruner": "hyperband", "reporter": reporter}
    best = tune(folder, tmp_path, base, trials=1, max_crystals=9, **options)
    training = load_config(best.path).training
    assert (training.epochs, training.batch_crystals, training.max_crystals) == (None, None, 0)
    count = round(7 * 9 / 12)  # 4 of 12 validate and 1 tests; 9 of 12 are used
    chosen = open_settings(base.training, count, has_start=False)
    assert described(count, chosen) in said.getvalue()
    (row,) = rows_of(tmp_path / "trials.csv")
    assert int(row["epochs"]) == chosen["epochs"]


# ---------------------------------------------------------------------------------------------
# Damage and full disks


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A study of two trials."""
    out = tmp_path_factory.mktemp("study")
    return out, tune(folder, out, BASE, trials=2, space={"blocks": [1, 2]}, epochs=1)


@pytest.mark.slow
def test_a_damaged_study_is_named_or_gives_the_same(finished, folder, tmp_path):
    """At 40 places: one byte changed, or the rest cut off."""
    original, want = finished
    content = (original / "study.db").read_bytes()
    rng = np.random.default_rng(0)
    shutil.copytree(original, tmp_path / "out")
    path = tmp_path / "out" / "study.db"
    named = 0
    for k, place in enumerate(rng.integers(0, len(content), 40)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(content[:place] if k % 4 == 0 else damaged)
        try:
            best = tune(
                folder, tmp_path / "out", BASE, trials=2, space={"blocks": [1, 2]}, epochs=1
            )
        except (ValueError, RuntimeError) as error:
            assert str(path) in str(error) or f"{path.parent} holds a study with" in str(error)
            named += 1
        else:
            assert (best.values, best.valid_error) == (want.values, want.valid_error), place
    assert named >= 10


def test_a_full_disk_is_reported_with_the_name_of_the_study(folder, tmp_path, monkeypatch):
    import sqlalchemy.exc

    def full(*_, **__):
        orig = Exception("database or disk is full")
        raise sqlalchemy.exc.OperationalError("INSERT", {}, orig)

    tune(folder, tmp_path, BASE, trials=1, space={"blocks": [1, 2]}, epochs=1)
    name = "optuna.storages.RDBStorage.set_trial_state_values"
    monkeypatch.setattr(name, full)
    with pytest.raises(
        RuntimeError, match=r"study\.db cannot be read or written: database or disk"
    ):
        tune(folder, tmp_path, BASE, trials=2, space={"blocks": [1, 2]}, epochs=1)


def test_a_file_in_place_of_the_folder_is_noticed_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        tune(tmp_path / "no data", tmp_path / "file", BASE)


def test_missing_package_is_named(folder, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'sitenet\[tune\]'"):
        tune(folder, tmp_path, BASE)
