"""The public names of a run; ``lazy_loader`` reads this list at run time."""

from .execute import run_recipe
from .pipeline import Run

__all__ = ["Run", "run_recipe"]
