"""A run: its stages, what it amounts to, and all of it in one call."""

from __future__ import annotations

from tdistill.run.pipeline import Run
from tdistill.run.whole import run_recipe

__all__ = ["Run", "run_recipe"]
