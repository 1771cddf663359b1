"""Reports and figures."""

from sitenet.report.crystal_page import crystal_report as crystal_report
from sitenet.report.run_page import run_report as run_report
