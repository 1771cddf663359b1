"""Where the file of a model is; without torch, so that a wrong name is refused at once."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from pathlib import Path

MODEL_FILE = "model.safetensors"  # of a run folder
ALL = "all"  # names all weights that ship
_STATE_FILE = "state.safetensors"  # of a run folder: what training resumes from


def find_model(name_or_path: str | Path) -> Path:
    """Find the file of a model.

    Args:
        name_or_path: Name of shipped weights, a model file, or a run folder of ``sitenet train``.

    Raises:
        FileNotFoundError: Neither weights nor a file have this name.
        ValueError: The file is the state of a training run, not a model.
    """
    name, shipped = str(name_or_path), shipped_weights()
    path = shipped.get(name, Path(name_or_path))
    if path.is_dir():
        path = path / MODEL_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"the folder {name!r} holds no {MODEL_FILE}, which a run of sitenet train leaves "
                "there"
            )
    if path.is_file():
        if path.name == _STATE_FILE:
            raise ValueError(
                f"{path} is the state of a training run, not a model: name "
                f"{path.with_name(MODEL_FILE)} instead"
            )
        return path
    if not shipped:
        raise FileNotFoundError(
            f"no model file {name!r}; no weights ship with this sitenet: name the {MODEL_FILE} "
            "that sitenet train left"
        )
    near = difflib.get_close_matches(name, shipped, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(
        f"no model file {name!r}; weights that ship with sitenet: {', '.join(shipped)}{hint}"
    )


def find_models(names: Sequence[str | Path]) -> dict[str, Path]:
    """Find the files of several models, by the names that tables call them.

    Args:
        names: As in ``find_model``; "all" stands for all weights that ship.

    Returns:
        Files by name: that of shipped weights, else of the run folder or of the file without its
        ending.

    Raises:
        FileNotFoundError: No such model, or "all" where none ship.
        ValueError: Two models have the same name, or a file is no model.
    """
    shipped = shipped_weights()
    files: dict[str, Path] = {}
    for name in itertools.chain.from_iterable(
        shipped or [name] if str(name) == ALL else [name] for name in names
    ):
        path = find_model(name)
        title = str(name)
        if title not in shipped:
            title = path.resolve().parent.name if path.name == MODEL_FILE else path.stem
        if title in files and files[title].resolve() != path.resolve():
            raise ValueError(
                f"{files[title]} and {path} are both named {title!r}, by which the columns of "
                "several models are told apart: rename one"
            )
        files[title] = path
    return files


def shipped_weights() -> dict[str, Path]:
    """Files of the weights that ship with sitenet, by name."""
    return {p.stem: p for p in sorted(weights_folder().glob("*.safetensors"))}


def weights_folder() -> Path:
    """The folder of the weights that ship with sitenet."""
    return Path(__file__).parents[1] / "weights"
