"""The command line: what it prints where, its exit statuses, and each command on tiny data."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from toy_crystals import SMALL, toy_crystals, write_folder

from sitenet.cli import app as cli
from sitenet.config import SiteNetConfig, TrainingConfig, load_config
from sitenet.data.prepared import load_dataset
from sitenet.model.checkpoint import load
from sitenet.model.sitenet import SiteNet, Target
from sitenet.published.checkpoint import to_published

PUBLISHED = {
    "embedding_size": 4,
    "attention_heads": 1,
    "attention_blocks": 1,
    "site_dim_per_head": 4,
    "attention_dim_interaction": 3,
    "attention_hidden_layers": [5],
    "pre_pool_layers": [6],
    "post_pool_layers": [7],
    "activation_function": "mish",
    "set_norm": "layer",
    "lin_norm": "layer",
    "last_af_func": "TReLU",
    "site_feature_size": 8,
    "interaction_feature_size": 2,
    "Learning_Rate": 1e-3,
    "Batch_Size": 20,
    "Max_Samples": 1e9,
    "Optimizer": {"Name": "AdamW", "Kwargs": {"eps": 1e-7, "weight_decay": 1e-4}},
}


@pytest.fixture
def sitenet(capsys):
    """Runs a command in this process: status, standard output, standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of CIFs and their targets, and one CIF that is none."""
    path = tmp_path_factory.mktemp("crystals")
    write_folder(path, 14)
    (path / "c3.cif").write_text("data_c3\n_cell_length_a 4\n")
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(SMALL.replace(epochs=2, last_activation="identity").to_dict()))
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, folder, config):
    """A folder that ``sitenet train`` left."""
    path = tmp_path_factory.mktemp("run")
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(folder), "--out", str(path), "--config", str(config)])
    assert not end.value.code
    return path


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


# ---------------------------------------------------------------------------------------------
# What all commands share


def test_help_lists_every_command_and_loads_no_torch():
    code = "import sys; sys.argv = ['sitenet', '--help']; from sitenet.cli.app import main\n"
    code += "try: main()\nfinally: assert 'torch' not in sys.modules, 'torch'"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == ""
    names = "info prepare train predict evaluate explain report tune crossval matbench"
    for name in names.split():
        assert f" {name} " in run.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["predict", "c.cif", "--model", "mp-gpa"], 1, "did you mean 'mp-gap'?"),
        (["evaluate", "c.cif", "--model", "absent"], 1, "no model file 'absent'"),
        (["explain", "c.cif", "--model", "state.safetensors"], 1, "state of a training run"),
        (["encode", "c.cif", "--out", "a.npz", "--model", "mp-gpa"], 1, "did you mean 'mp-gap'?"),
        (["screen", "c.cif", "--where", "a > 1", "--model", "absent"], 1, "no model file 'absent'"),
        (["serve", "--model", "mp-gpa"], 1, "did you mean 'mp-gap'?"),
        (["predict", "absent.cif"], 2, "'absent.cif' does not exist"),
        (["predict", "c.cif", "--out", "."], 1, "expected a file to write, got a folder"),
        (["predict", "c.cif", "--coverage", "90"], 2, "--coverage"),
        (["predict", "c.cif", "--published", "c.cif", "--config", "papre"], 2, "named configs"),
        (["predict", "c.cif", "--devise", "cpu"], 2, "--devise"),
        (["explain", "c.cif", "--out", "c.txt"], 1, "expected a folder or a file ending in"),
        (["train", "c.cif", "--out", "run", "--epochs", "0"], 2, "epochs must be at least 1"),
    ],
    ids=str,
)
def test_a_wrong_command_is_refused_before_torch_is_imported(arguments, status, message, tmp_path):
    for name in ("c.cif", "state.safetensors"):
        (tmp_path / name).write_text("")
    code = "import sys; from sitenet.cli.app import main\n"
    code += "try: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules, 'torch'"
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    said = " ".join(run.stderr.replace("│", " ").split())
    assert run.returncode == status and message in said and "Traceback" not in said, said


def test_predict_imports_no_more_than_it_needs(folder, run_folder):
    """Each of these takes 30 ms to 0.7 s to import."""
    code = "import sys; from sitenet.cli.app import main\n"
    code += "try: main(sys.argv[1:])\nfinally: print(*sys.modules, file=sys.stderr)"
    command = ["predict", folder / "c0.cif", "--model", run_folder]
    run = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert run.returncode == 0
    heavy = {"torch._dynamo", "pyarrow", "pandas", "matplotlib", "sklearn", "rich.progress"}
    assert heavy & set(run.stderr.split()) == set()


@pytest.mark.parametrize("command", ["train", "tune", "crossval", "matbench"])
def test_options_are_the_fields_of_the_config(sitenet, command):
    status, out, _ = sitenet(command, "--help")
    assert status == 0
    for name in (
        "learning-rate",
        "epochs",
        "max-sites",
        "blocks",
        "last-activation",
        "merge",
        "distance-cutoff",
    ):
        assert f"--{name}" in out
    assert "Training settings" in out and "SiteNet settings" in out


def test_version_and_info(sitenet):
    from sitenet import __version__

    assert sitenet("--version")[1] == f"{__version__}\n"
    status, out, err = sitenet("info", "--json")
    assert status == 0 and err == "" and json.loads(out)["version"] == __version__
    assert __version__ in sitenet("info")[1]


def test_usage_errors_have_status_2(sitenet, folder, tmp_path):
    out = tmp_path / "out"
    for arguments, text in (
        ([], "Commands"),
        (["trian"], "trian"),
        (["train"], "DATA"),
        (["train", folder], "--out"),
        (["train", folder / "absent", "--out", out], "absent"),
        (["train", folder, "--out", out, "--config", "papre"], "named configs: "),
        (["train", folder, "--out", out, "--epochs", "0"], "epochs must be at least 1"),
        (["train", folder, "--out", out, "--epochs", "many"], "--epochs"),
        (
            ["train", folder, "--out", out, "--schedule", "linear"],
            "'constant', 'cosine', 'onecycle'",
        ),
        (["train", folder, "--out", out, "--device", "tpu"], "expected cpu, cuda"),
        (["train", folder, "--out", out, "--disorder", "ignore"], "--disorder"),
        (["predict", folder / "absent.cif"], "absent.cif"),
        (["explain", folder, "--rows", "atoms"], "--rows"),
        (["tune", folder, "--out", out, "--sampler", "grid"], "--sampler"),
    ):
        status, printed, said = sitenet(*arguments)
        told = " ".join((said + printed).replace("│", " ").split())
        assert status == 2 and text in told, arguments
        assert "Traceback" not in said
    assert not out.exists()


def test_failures_are_a_line_and_status_1(sitenet, folder, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "bad.csv").write_text("id,gap\na,1\nb\n")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for arguments, text in (
        (["train", folder, "--out", out, "--target", "gap"], "no target gap; there is size_A"),
        (["train", tmp_path / "bad.csv", "--out", out], "bad.csv row 3"),
        (["predict", folder, "--model", "no-such"], "no model file 'no-such'"),
        (["predict", folder, "--model", tmp_path / "bad.safetensors"], "bad.safetensors"),
        (["evaluate", folder, "--model", "no-such"], "no model file 'no-such'"),
        (["report", tmp_path], "holds no run"),
    ):
        status, printed, said = sitenet(*arguments)
        assert (status, printed) == (1, ""), arguments
        assert said.startswith("error: ") and said.count("\n") == 1 and text in said


def test_debug_shows_the_traceback(folder):
    for arguments in (["--debug", "predict"], ["predict", "--debug"]):
        with pytest.raises(FileNotFoundError, match="no model file"):
            cli.main([*arguments, str(folder), "--model", "absent"])


@pytest.mark.filterwarnings("default")
def test_warnings_are_a_line(sitenet, folder, config, tmp_path):
    table = tmp_path / "negative.csv"
    names = [c.name for c in toy_crystals(5)]
    table.write_text("id,gap\n" + "".join(f"{folder / n},-1.5\n" for n in names if n != "c3"))
    status, _, said = sitenet(
        "train", table, "--out", tmp_path / "o", "--config", config, "--last-activation", "trelu"
    )
    assert status == 0
    assert "\nwarning: gap has negative values" in "\n" + said


def test_shell_completion_knows_commands_options_and_configs():
    for words, expected in (
        ("sitenet tr", "train"),
        ("sitenet train --learning-r", "--learning-rate"),
        ("sitenet train --config paper-e", "paper-eform"),
    ):
        settings = {
            "_SITENET_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        code = "from sitenet.cli.app import main; main()"
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | settings,
        )
        assert expected in run.stdout.split(), (words, run.stderr)


# ---------------------------------------------------------------------------------------------
# Each command


def test_prepare(sitenet, folder, tmp_path):
    out = tmp_path / "set.parquet"
    status, printed, _ = sitenet("prepare", folder, "--out", out, "--json")
    assert status == 0
    facts = {"out": str(out), "crystals": 13, "left_out": 1, "without_value": 0}
    assert json.loads(printed) == facts
    left_out = rows_of((tmp_path / "set.left_out.csv").read_text())
    assert [row["id"] for row in left_out] == ["c3"]
    assert "13 crystals, 1 left out" in sitenet("prepare", folder, "--out", out)[1]
    assert load_dataset(out).units == ("Å",)
    assert sitenet("prepare", folder, "--out", out, "--unit", "wombats")[0] == 0
    assert load_dataset(out).units == ("wombats",)
    status, _, said = sitenet("prepare", folder, "--out", out, "--unit", "nm", "--unit", "K")
    assert status == 1 and "expected one unit per target (size_A), got nm, K" in said


def test_rows_without_a_value_are_counted_and_listed(sitenet, config, tmp_path):
    write_folder(tmp_path / "in", 14)
    table = tmp_path / "in" / "targets.csv"
    table.write_text(re.sub(r"(?m)^(c[25]),.*$", r"\1,", table.read_text()))
    out = tmp_path / "set.parquet"
    printed = sitenet("prepare", tmp_path / "in", "--out", out)[1]
    assert "14 crystals (2 without a value, on which no model is trained), 0 left out" in printed
    for data in (tmp_path / "in", out):
        run = tmp_path / f"run of {data.name}"
        status, _, said = sitenet("train", data, "--out", run, "--config", config)
        assert status == 0 and "10 crystals to learn from" in said
        assert "2 structures left out (2 x no target value)" in said
        assert [row["id"] for row in rows_of((run / "left_out.csv").read_text())] == ["c2", "c5"]


def test_train_leaves_a_run_folder_and_goes_on(sitenet, folder, config, run_folder):
    for name in ("model.safetensors", "config.yaml", "metrics.jsonl", "predictions.csv"):
        assert (run_folder / name).is_file()
    assert load_config(run_folder / "config.yaml").training.epochs == 2
    arguments = ["train", folder, "--out", run_folder, "--config", config, "--json"]
    status, printed, said = sitenet(*arguments)
    assert status == 0 and "resumes after epoch 2" in said
    assert json.loads(printed)["test"]["size_A"]["crystals"] == 1
    status, _, said = sitenet(*arguments, "--learning-rate", "0.1")
    assert status == 1 and "other data or settings" in said


def test_options_change_the_model_to_start_from(sitenet, folder, run_folder, tmp_path):
    """An option holds for the model too, whose other settings stay as they are."""
    arguments = ["train", folder, "--start", run_folder / "model.safetensors", "--epochs", "1"]
    status, _, _ = sitenet(*arguments, "--out", tmp_path / "a", "--last-activation", "trelu")
    written = load_config(tmp_path / "a" / "config.yaml")
    assert status == 0 and (written.last_activation, written.training.epochs) == ("trelu", 1)
    assert written.replace(last_activation="identity", training=SMALL.training) == SMALL.replace(
        last_activation="identity"
    )
    status, _, said = sitenet(*arguments, "--out", tmp_path / "b", "--optimizer", "x")
    assert status == 2 and "optimizer" in said
    status, _, said = sitenet(*arguments, "--out", tmp_path / "b", "--heads", "3")
    assert status == 1 and "the model to start from does not fit the config" in said


def test_train_prints_scores(sitenet, folder, config, tmp_path):
    arguments = ["train", folder, "--out", tmp_path, "--config", config, "--test", "0.3"]
    status, printed, said = sitenet(*arguments)
    assert status == 0
    assert "test: size (Å): MAE" in printed and "if predicting the mean" in printed
    assert "everything is in" in said and "1 structures left out" in said


def test_interruption_says_how_to_resume(sitenet, folder, config, tmp_path, monkeypatch):
    from sitenet.training.trainer import Trainer

    def interrupted(self, seconds_left):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_epoch", interrupted)
    status, printed, said = sitenet("train", folder, "--out", tmp_path, "--config", config)
    assert (status, printed) == (1, "")
    assert "stopped: epoch 0 was in progress" in said and "the same command resumes" in said


def test_predict_tables(sitenet, folder, run_folder, tmp_path):
    model = run_folder / "model.safetensors"
    status, printed, said = sitenet("predict", folder / "c0.cif", "--model", model)
    assert status == 0 and said == ""
    (row,) = rows_of(printed)
    expected = load(model).predict([folder / "c0.cif"])
    np.testing.assert_allclose(float(row["size_A_predicted"]), expected[0], rtol=1e-5)

    status, printed, said = sitenet("predict", folder, "--model", model, "--json")
    rows = json.loads(printed)
    assert status == 0 and len(rows) == 13
    assert isinstance(rows[0]["size_A_predicted"], float) and rows[0]["id"] == "c0"
    assert {"size_A_low", "size_A_high", "like_training"} <= set(rows[0])
    assert "1 left out" in said and "c3.cif" in said

    out = tmp_path / "table.csv"
    status, printed, _ = sitenet("predict", folder, "--model", model, "--out", out, "--json")
    facts = json.loads(printed)
    assert (facts["predicted"], sum(facts["left_out"].values())) == (13, 1)
    assert len(rows_of(out.read_text())) == 13


def test_predict_fails_where_nothing_can_be_used(sitenet, folder, run_folder):
    model = run_folder / "model.safetensors"
    status, printed, said = sitenet("predict", folder / "c3.cif", "--model", model, "--json")
    assert status == 1 and json.loads(printed) == [] and "c3.cif" in said


def test_predict_uses_shipped_weights_by_default(sitenet, folder, run_folder, monkeypatch):
    from sitenet.system import model_files

    monkeypatch.setattr(model_files, "shipped_weights", dict)
    status, _, said = sitenet("predict", folder / "c0.cif")
    assert status == 1 and "no model file 'mp-gap'" in said and "sitenet train" in said
    there = {"mp-gap": run_folder / "model.safetensors"}
    monkeypatch.setattr(model_files, "shipped_weights", lambda: there)
    status, printed, _ = sitenet("predict", folder / "c0.cif")
    assert status == 0 and "like_training" in rows_of(printed)[0]


@pytest.mark.slow
def test_predict_in_several_processes_needs_a_file(folder, run_folder):
    """Where torchrun started several, all but the first are silent and wait for each other."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [
        "-m",
        "sitenet",
        "predict",
        str(folder),
        "--model",
        run_folder / "model.safetensors",
    ]
    out = run_folder / "several.csv"
    run = subprocess.run([*torchrun, *command, "--out", out], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("1 left out") == 1
    assert len(rows_of(out.read_text())) == 13


def test_evaluate(sitenet, folder, run_folder, tmp_path):
    model = run_folder / "model.safetensors"
    arguments = ["evaluate", folder, "--model", model, "--out", tmp_path]
    status, printed, said = sitenet(*arguments)
    assert status == 0 and "all: size (Å): MAE" in printed and "1 left out" in said
    assert (tmp_path / "parity.png").is_file() and (tmp_path / "left_out.csv").is_file()
    scores = json.loads(sitenet(*arguments, "--json")[1])
    assert scores["all"]["size_A"]["crystals"] == 13


def test_predict_and_evaluate_name_training_crystals(sitenet, folder, run_folder, tmp_path):
    arguments = (folder, "--model", run_folder)
    rows = json.loads(sitenet("predict", *arguments, "--neighbours", 2, "--json")[1])
    learned = [row for row in rows if row["learned_from"]]
    assert 0 < len(learned) < len(rows)
    assert all(row["neighbour1"] and row["neighbour2_distance"] is not None for row in rows)
    _, _, said = sitenet("evaluate", *arguments, "--out", tmp_path)
    assert f"the model was trained on {len(learned)} of these {len(rows)} crystals" in said


def test_screen(sitenet, folder, run_folder, tmp_path):
    (name,) = (t.name for t in load(run_folder).targets)
    out = tmp_path / "screening"
    arguments = ("screen", folder, "--model", run_folder, "--out", out, "--coverage", 0.5)
    status, printed, said = sitenet(*arguments, "--where", f"{name} > 0", "--json")
    rows = json.loads(printed)
    assert status == 0 and len(rows) == 10 and "expected to meet" in said
    probabilities = [row["probability"] for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert {p.name for p in out.iterdir()} == {"ranking.csv", "left_out.csv", "report.html"}
    status, _, said = sitenet(*arguments, "--where", f"{name} above 0")
    assert status == 1 and "cannot read" in said and "NAME between X and Y" in said


def test_explain_one_crystal(sitenet, folder, run_folder, tmp_path):
    arguments = ["explain", folder / "c0.cif", "--model", run_folder / "model.safetensors"]
    status, printed, said = sitenet(*arguments)
    assert status == 0 and said == ""
    assert {"element", "neighbour", "attention"} <= set(rows_of(printed)[0])
    status, printed, _ = sitenet(*arguments, "--rows", "pairs", "--json")
    pairs = json.loads(printed)
    assert isinstance(pairs[0]["distance"], float) and isinstance(pairs[0]["site"], int)
    for name, text in (("a.csv", "element,"), ("a.html", "<html"), ("a.svg", "<svg")):
        status, printed, said = sitenet(*arguments, "--out", tmp_path / name)
        assert (status, printed, said) == (0, "", f"written: {tmp_path / name}\n")
        assert text in (tmp_path / name).read_text()


@pytest.fixture
def terminal(monkeypatch, sitenet):
    """Runs a command whose standard output is a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        return sitenet(*arguments)

    return run


def test_explain_on_a_terminal_is_sentences_and_a_narrow_table(terminal, folder, run_folder):
    arguments = ["explain", folder / "c0.cif", "--model", run_folder]
    status, printed, _ = terminal(*arguments)
    lines = printed.splitlines()
    assert status == 0 and max(map(len, lines)) <= 80
    assert lines[0].startswith("c0 (") and "size (Å)" in lines[0]
    text = lines.index("")
    assert 4 <= text <= 12 and "of its attention to" in lines[1]
    columns = ["element", "neighbour", "sites", "pairs", "attention", "relative"]
    assert lines[text + 1].split() == columns
    status, printed, _ = terminal(*arguments, "--rows", "elements", "--heads")
    assert printed.splitlines()[0].split()[:7] == [*columns, "block1_head1"]
    status, printed, _ = terminal("explain", folder, "--model", run_folder)
    assert printed.splitlines()[0] == "13 crystals"
    assert ["name", "size_A", "long_range"] in [line.split() for line in printed.splitlines()]


def test_predict_on_a_terminal_fits_into_80_columns(terminal, folder, run_folder):
    status, printed, _ = terminal("predict", folder, "--model", run_folder)
    lines = printed.splitlines()
    assert status == 0 and lines[0].split() == "id formula size (Å) flag".split()  # no intervals
    assert max(map(len, lines)) <= 80 and sum(line.startswith("c") for line in lines) == 13


def test_heads_are_columns_of_a_table_on_request(sitenet, folder, run_folder):
    arguments = ["explain", folder / "c0.cif", "--model", run_folder]
    (first, *_) = rows_of(sitenet(*arguments)[1])
    (full, *_) = rows_of(sitenet(*arguments, "--heads")[1])
    assert "block1_head1" not in first and full.keys() > first.keys()
    assert {"weight"} <= set(rows_of(sitenet(*arguments, "--rows", "pairs")[1])[0])


def test_several_models_share_a_table(sitenet, folder, run_folder, tmp_path):
    models = ["--model", run_folder, "--model", "mp-gap"]
    status, printed, said = sitenet("predict", folder / "c0.cif", folder / "c1.cif", *models)
    rows = rows_of(printed)
    assert status == 0 and len(rows) == 2
    for model in (run_folder, "mp-gap"):
        alone = rows_of(
            sitenet("predict", folder / "c0.cif", folder / "c1.cif", "--model", model)[1]
        )
        for row, want in zip(rows, alone, strict=True):
            (name,) = [x for x in want if x.endswith("_predicted")]
            assert row[name] == want[name]
            assert row[f"{run_folder.name if model == run_folder else model}_like_training"]
    status, _, said = sitenet("predict", folder / "c0.cif", "--model", "mp-gap", "--model", "mp-gp")
    assert status == 1 and "did you mean 'mp-gap'?" in said


def test_a_stopped_prediction_says_how_to_go_on(sitenet, folder, run_folder, tmp_path, monkeypatch):
    from sitenet.inference.predict_chunks import Predictor

    def interrupted(self, *arguments):
        raise KeyboardInterrupt
        yield

    arguments = ["predict", folder, "--model", run_folder, "--out", tmp_path / "y.csv"]
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "chunks", interrupted)
        status, printed, said = sitenet(*arguments)
    assert (status, printed) == (1, "")
    assert said == "stopped: 0 of 14 crystals are done; the same command resumes there\n"
    status, _, said = sitenet(*arguments)
    assert status == 0 and f"13 rows written: {tmp_path / 'y.csv'}" in said
    assert "13 rows left as they are" in sitenet(*arguments)[2]


def test_explain_a_folder_draws_the_two_figures(sitenet, folder, run_folder, tmp_path):
    arguments = ["explain", folder, "--model", run_folder / "model.safetensors"]
    status, printed, said = sitenet(*arguments)
    assert status == 0 and len(rows_of(printed)) == 13 and "1 left out" in said
    out = tmp_path / "figures"
    status, printed, _ = sitenet(*arguments, "--out", out, "--json")
    assert json.loads(printed) == {"out": str(out), "crystals": 13, "left_out": 1}
    for name in ("parity.png", "attention_by_distance.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    crystals = rows_of((out / "crystals.csv").read_text())
    assert [row["name"] for row in crystals][:3] == ["c0", "c1", "c2"]
    assert "long_range_block1_head1" in crystals[0]
    assert [row["id"] for row in rows_of((out / "left_out.csv").read_text())] == ["c3"]
    status, _, said = sitenet(*arguments, "--out", tmp_path / "a.html")
    assert status == 1 and "an HTML report is on one crystal" in said


def test_explain_a_prepared_dataset(sitenet, folder, run_folder, tmp_path):
    sitenet("prepare", folder, "--out", tmp_path / "set.parquet")
    model = run_folder / "model.safetensors"
    out = tmp_path / "figures"
    status, _, _ = sitenet("explain", tmp_path / "set.parquet", "--model", model, "--out", out)
    assert status == 0 and (out / "parity.png").is_file()


def test_report(sitenet, run_folder, tmp_path):
    status, printed, _ = sitenet("report", run_folder, "--json")
    page = run_folder / "report.html"
    assert status == 0 and json.loads(printed) == {"out": str(page)}
    assert "<html" in page.read_text()
    assert sitenet("report", run_folder, "--out", tmp_path / "r.html")[0] == 0


# ---------------------------------------------------------------------------------------------
# Published settings and checkpoints


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(PUBLISHED))
    return path


def test_train_takes_a_published_config(sitenet, folder, published, tmp_path):
    out = tmp_path / "run"
    status, _, _ = sitenet("train", folder, "--out", out, "--config", published, "--epochs", 1)
    assert status == 0
    written = load_config(out / "config.yaml")
    assert written == load_config(PUBLISHED).replace(epochs=1)
    assert written.training == TrainingConfig(
        learning_rate=1e-3, batch_sites=20, weight_decay=1e-4, epsilon=1e-7, epochs=1
    )


def test_predict_takes_a_published_checkpoint(sitenet, folder, published, tmp_path):
    torch.manual_seed(0)
    model = SiteNet(SiteNetConfig.from_dict(PUBLISHED), [Target()])
    content = {"epoch": 3, "state_dict": to_published(model), "pytorch-lightning_version": "1.5"}
    torch.save(content, tmp_path / "model.ckpt")
    arguments = ["--published", tmp_path / "model.ckpt", "--config", published]
    status, printed, _ = sitenet("predict", folder / "c0.cif", *arguments)
    assert status == 0
    (row,) = rows_of(printed)
    expected = model.predict([folder / "c0.cif"])[0]
    np.testing.assert_allclose(float(row["target_predicted"]), expected, rtol=1e-5, atol=1e-6)
    status, _, said = sitenet("predict", folder / "c0.cif", *arguments[:2])
    assert status == 1 and "does not fit the config" in said
