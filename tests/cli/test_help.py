"""Help texts: complete sentences, with the choices, units and defaults of every option."""

import dataclasses
import re

import pytest
import typer
from typer.testing import CliRunner

from sitenet.cli.app import app
from sitenet.cli.options import ALL_FIELDS, help_of
from sitenet.config import DEFAULT_CONFIG, load_config
from sitenet.system.settings import choices_of, field_types

COMMANDS = sorted(typer.main.get_command(app).commands)


def help_text(command):
    return CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"}).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_every_sentence_stands_alone(command):
    text = help_text(command)
    assert max(map(len, text.splitlines())) <= 80
    for parameter in typer.main.get_command(app).commands[command].params:
        help = parameter.help
        assert help and help[0].isupper(), parameter.name
        assert not re.match(r"(Of|Those|These|It|They)\b", help), help


@pytest.mark.parametrize("cls", ALL_FIELDS)
def test_fields_show_choices_defaults_and_units(cls):
    text = re.sub(r"\s+", " ", help_text("train"))
    for f in dataclasses.fields(cls):
        flag = f"--{f.name.replace('_', '-')}"
        if f"{flag} " not in text:  # lists are set in a YAML file
            assert f.name in {"hidden", "pre_pool", "post_pool", "training"} | {
                "interaction_features",
                "site_features",
            }
            continue
        assert re.sub(r"\s+", " ", help_of(f)) in text
        choices = choices_of(field_types(cls)[f.name])
        if choices:
            assert f"{flag} <{'|'.join(choices)}>" in text
    assert "Radius of the sphere, in angstrom [default: " in text
    assert "Optimiser: AdamW, or Muon for hidden matrices and AdamW for the rest" in text


def test_defaults_are_those_of_the_config_that_the_help_names():
    assert f"(defaults: those of the config {DEFAULT_CONFIG})" in help_text("train")
    config = load_config(DEFAULT_CONFIG)
    fields = {f.name: f for cls in ALL_FIELDS for f in dataclasses.fields(cls)}
    assert help_of(fields["radius"]).endswith(f"[default: {config.radius:.4g}]")
    assert help_of(fields["heads"]).endswith(f"[default: {config.heads}]")
    assert help_of(fields["optimizer"]).endswith(f"[default: {config.training.optimizer}]")


@pytest.mark.parametrize(
    ("options", "choices"),
    [
        (["--optimizer", "sgd"], "'adamw', 'muon'"),
        (["--images", "cube"], "'supercell', 'sphere'"),
        (["--activation", "Mish"], "'mish', 'relu', 'none'"),
    ],
)
def test_a_wrong_choice_lists_the_right_ones(tmp_path, options, choices):
    command = ["train", str(tmp_path), "--out", str(tmp_path / "run"), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert choices in result.output
