"""The optional packages that plots and reports need."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

PLOTS = (".png", ".svg", ".pdf")  # suffixes of matplotlib's files


def plotly(module: str) -> Any:
    """Import a module of plotly.

    Raises:
        ImportError: It is not installed; says how to install it.
    """
    try:
        return import_module(f"plotly.{module}")
    except ImportError:
        raise ImportError("reports need plotly: pip install 'sitenet[report]'") from None


def has_matplotlib() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import_module("matplotlib.figure")
    except ImportError:
        return False
    return True


def need_matplotlib() -> None:
    """Check that matplotlib can be imported.

    Raises:
        ImportError: It cannot; says how to install it.
    """
    if not has_matplotlib():
        raise ImportError("plots need matplotlib: pip install 'sitenet[plot]'")


def check_format(path: str | Path) -> None:
    """Check that an explanation can be written to a file, before it is computed.

    Args:
        path: A table (``.csv``), plot, report (``.html``), or, without a suffix, a folder of
            tables and plots.

    Raises:
        ImportError: A package is missing; says how to install it.
        ValueError: The suffix names no such format.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".html":
        plotly("graph_objects")
    elif not suffix or suffix in PLOTS:
        need_matplotlib()
    elif suffix != ".csv":
        expected = ", ".join((".csv", ".html", *PLOTS))
        raise ValueError(f"{path}: expected a folder or a file ending in {expected}, got {suffix}")
