"""The objectives: a closed union of frozen dataclasses, each a few lines over ``tdistill.core``.

To add one, write its class in a file of this folder, with its name in the file's ``__all__``, and
list it in ``AnyObjective``: recipes, the catalogue, its documentation and ``tdistill.objectives``
follow. A user's own is named in a recipe by its import path (``objective: mine.py:MyObjective``).
"""

from tdistill.training.objectives.base import *
from tdistill.training.objectives.bounded_iq import *
from tdistill.training.objectives.cloning import *
from tdistill.training.objectives.constant_rewards import *
from tdistill.training.objectives.cost_critic import *
from tdistill.training.objectives.critic_config import *
from tdistill.training.objectives.csil import *
from tdistill.training.objectives.gkd import *
from tdistill.training.objectives.iq_learn import *
from tdistill.training.objectives.minillm import *
from tdistill.training.objectives.soft_actor_critic import *
from tdistill.training.objectives.soft_td import *
from tdistill.training.objectives.sparse_kd import *
from tdistill.training.objectives.temporal_difference import *
from tdistill.training.objectives.value_folded import *
from tdistill.training.objectives.value_tilted import *

AnyObjective = (
    SFT
    | SeqKD
    | KD
    | ReverseKL
    | JSD
    | SkewKL
    | SkewReverseKL
    | TotalVariation
    | GKD
    | MiniLLM
    | BellmanDistill
    | IQLearn
    | SoftTD
    | PathConsistency
    | SQIL
    | LSIQ
    | CSIL
    | BoundedIQ
    | SparseKD
    | ValueTiltedKD
    | ValueFoldedKD
    | SoftActorCritic
)
