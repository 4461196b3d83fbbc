"""Exact float64 dynamic programming on small token MDPs: the oracle of sections 3 and 9."""

from __future__ import annotations

from tdistill.tabular.imitation import soft_improvement, state_kl, tilted, with_log_teacher
from tdistill.tabular.mdp import TERMINAL, TokenMDP, prefix_tree, random_mdp
from tdistill.tabular.programming import (
    cost_to_go,
    expected_sum,
    occupancy,
    per_state_gap,
    policy_evaluation,
    project_policy,
    soft_operator,
    soft_optimal_q,
    soft_policy,
    soft_return,
    state_values,
    successor_values,
    top_p_mask,
    with_teacher,
)
from tdistill.tabular.tied import (
    TiedStates,
    best_cloner,
    best_tied_policy,
    minimise,
    safe_share,
    tied_step,
)

__all__ = [
    "TERMINAL",
    "TiedStates",
    "TokenMDP",
    "best_cloner",
    "best_tied_policy",
    "cost_to_go",
    "expected_sum",
    "minimise",
    "occupancy",
    "per_state_gap",
    "policy_evaluation",
    "prefix_tree",
    "project_policy",
    "random_mdp",
    "safe_share",
    "soft_improvement",
    "soft_operator",
    "soft_optimal_q",
    "soft_policy",
    "soft_return",
    "state_kl",
    "state_values",
    "successor_values",
    "tied_step",
    "tilted",
    "top_p_mask",
    "with_log_teacher",
    "with_teacher",
]
