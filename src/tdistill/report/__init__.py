"""The report: a self-contained HTML page, and the same score table for a terminal."""

from __future__ import annotations

from tdistill.report.findings import summary
from tdistill.report.page import write_report
from tdistill.report.result import Result, read_result
from tdistill.report.tables import sample_panel, score_table

__all__ = ["Result", "read_result", "sample_panel", "score_table", "summary", "write_report"]
