"""Prompts and responses: sources, formats, rendering, and the data doctor."""

from __future__ import annotations

from tdistill.data.config import DataConfig
from tdistill.data.doctor import DoctorReport, ShownRow
from tdistill.data.examples import load_examples
from tdistill.data.making import Example
from tdistill.data.text import check_text_source, load_text_chunks
from tdistill.data.tokens import response_end_id

__all__ = [
    "DataConfig",
    "DoctorReport",
    "Example",
    "ShownRow",
    "check_text_source",
    "load_examples",
    "load_text_chunks",
    "response_end_id",
]
