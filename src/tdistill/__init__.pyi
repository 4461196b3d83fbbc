"""The public names of ``tdistill``; ``lazy_loader`` reads this list at run time."""

from .data.config import DataConfig
from .errors import TdistillError
from .evaluation.config import EvaluationConfig
from .recipe import Recipe, StartConfig, StudentConfig, TeacherConfig, read_recipe
from .run import run_recipe
from .teacher.config import CaptureConfig, RolloutConfig
from .training.config import TrainConfig
from .training.objectives import KD, SFT, BellmanDistill, SeqKD

__version__: str

__all__ = [
    "KD",
    "SFT",
    "BellmanDistill",
    "CaptureConfig",
    "DataConfig",
    "EvaluationConfig",
    "Recipe",
    "RolloutConfig",
    "SeqKD",
    "StartConfig",
    "StudentConfig",
    "TdistillError",
    "TeacherConfig",
    "TrainConfig",
    "read_recipe",
    "run_recipe",
]
