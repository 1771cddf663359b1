"""Reports and figures; imported on first use, as they bring torch."""

from typing import TYPE_CHECKING, Any

import sitenet

if TYPE_CHECKING:
    from sitenet.report.crystal_page import crystal_report as crystal_report
    from sitenet.report.run_page import run_report as run_report


def __getattr__(name: str) -> Any:
    if name in ("crystal_report", "run_report"):
        return getattr(sitenet, name)
    raise AttributeError(f"module 'sitenet.report' has no attribute {name!r}")
