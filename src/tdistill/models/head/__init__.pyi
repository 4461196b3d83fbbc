"""The public names of ``tdistill.models.head``; ``lazy_loader`` reads this list at run time."""

from .full_logits import log_normaliser, map_logits
from .linear import LinearHead, map_steps
from .row_products import (
    GATHERED,
    SPARSE,
    RowProducts,
    dense_gradient,
    gathered_dot,
    gathered_sum,
    set_scores,
    sparse_dot,
    sparse_sum,
)

__all__ = [
    "GATHERED",
    "SPARSE",
    "LinearHead",
    "RowProducts",
    "dense_gradient",
    "gathered_dot",
    "gathered_sum",
    "log_normaliser",
    "map_logits",
    "map_steps",
    "set_scores",
    "sparse_dot",
    "sparse_sum",
]
