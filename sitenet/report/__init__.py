"""Reports and figures."""

from sitenet.report.report import crystal_report as crystal_report
from sitenet.report.report import run_report as run_report
