"""The public names of ``tdistill``; ``lazy_loader`` reads this list at run time."""

from .data.config import DataConfig
from .errors import TdistillError
from .evaluation.config import EvaluationConfig
from .models.weights import WeightsConfig
from .recipe import Recipe, StartConfig, StudentConfig, TeacherConfig, read_recipe
from .run import run_recipe
from .teacher.config import CaptureConfig, RolloutConfig, ServerConfig, VllmConfig
from .training import objectives
from .training.config import ReplayConfig, TrainConfig

__version__: str

__all__ = [
    "CaptureConfig",
    "DataConfig",
    "EvaluationConfig",
    "Recipe",
    "ReplayConfig",
    "RolloutConfig",
    "ServerConfig",
    "StartConfig",
    "StudentConfig",
    "TdistillError",
    "TeacherConfig",
    "TrainConfig",
    "VllmConfig",
    "WeightsConfig",
    "objectives",
    "read_recipe",
    "run_recipe",
]
