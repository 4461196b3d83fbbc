"""The report: a self-contained HTML page, and the same score table for a terminal."""

from __future__ import annotations

from tdistill.report.html import write_report
from tdistill.report.tables import sample_panel, score_table

__all__ = ["sample_panel", "score_table", "write_report"]
