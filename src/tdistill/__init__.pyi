"""The public names of ``tdistill``; ``lazy_loader`` reads this list at run time."""

from .data.config import DataConfig
from .errors import TdistillError
from .evaluation.config import EvaluationConfig
from .recipe import Recipe, StartConfig, StudentConfig, TeacherConfig, read_recipe
from .run import run_recipe
from .teacher.config import CaptureConfig, RolloutConfig
from .training.config import ReplayConfig, TrainConfig
from .training.objectives import (
    CSIL,
    GKD,
    JSD,
    KD,
    LSIQ,
    SFT,
    SQIL,
    AuthorsCode,
    BellmanDistill,
    BoundedIQ,
    IQLearn,
    MiniLLM,
    Objective,
    PathConsistency,
    ReverseKL,
    SeqKD,
    SkewKL,
    SkewReverseKL,
    SoftTD,
    SparseKD,
    StepLoss,
    TotalVariation,
)

__version__: str

__all__ = [
    "CSIL",
    "GKD",
    "JSD",
    "KD",
    "LSIQ",
    "SFT",
    "SQIL",
    "AuthorsCode",
    "BellmanDistill",
    "BoundedIQ",
    "CaptureConfig",
    "DataConfig",
    "EvaluationConfig",
    "IQLearn",
    "MiniLLM",
    "Objective",
    "PathConsistency",
    "Recipe",
    "ReplayConfig",
    "ReverseKL",
    "RolloutConfig",
    "SeqKD",
    "SkewKL",
    "SkewReverseKL",
    "SoftTD",
    "SparseKD",
    "StartConfig",
    "StepLoss",
    "StudentConfig",
    "TdistillError",
    "TeacherConfig",
    "TotalVariation",
    "TrainConfig",
    "read_recipe",
    "run_recipe",
]
