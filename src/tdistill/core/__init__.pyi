"""The public names of ``tdistill.core``; ``lazy_loader`` reads this list at run time."""

from .bellman import implied_reward, soft_bellman_backup, td_error
from .bounds import kappa, loss_of_unseen_steps, sampled_gap_bound
from .cost_to_go import advantage, soft_actor_terms, spread, state_cost, tilt, token_sums
from .divergences import (
    cross_entropy,
    forward_kl,
    forward_kl_terms,
    jsd_terms,
    log_mixture,
    reverse_kl_terms,
    set_forward_kl,
    skew_kl_terms,
    skew_reverse_kl_terms,
    total_variation_terms,
)
from .iq_learn import (
    iq_learn_initial_loss,
    iq_learn_linear_term,
    iq_learn_loss,
    iq_learn_nonlinear_term,
    iq_learn_reward_term,
    iq_learn_value_term,
)
from .phi import (
    chi_square_phi,
    hellinger_phi,
    identity_phi,
    jensen_shannon_phi,
    kl_phi,
    total_variation_phi,
)
from .policy_gradient import clipped_policy_loss
from .projection import log_rest, log_set_mass, project, with_rest
from .ragged import Ragged, TensorGroup
from .reduction import WeightedSum, masked_sum
from .returns import discounted_sum, k_step_return, lambda_return, retrace_return
from .sampled_normaliser import sampled_log_normaliser, set_membership
from .segments import (
    kept_offsets,
    offsets_of,
    row_index,
    segment_cumsum,
    segment_logsumexp,
    segment_max,
    segment_sum,
)
from .shift import clip_q, set_max_shift, teacher_shift
from .sparse_tail import sampled_tail_kl, tail_mass
from .top_p import (
    TopPSets,
    check_top_p,
    top_p_sets,
    truncate,
    truncate_by_gain,
    truncated_sizes,
)
from .transitions import (
    Transitions,
    discounted_occupancy,
    ended_at_cuts,
    first_steps,
    split_at,
    successor,
    transitions,
)
from .value import expectation, policy_value, soft_value

__all__ = [
    "Ragged",
    "TensorGroup",
    "TopPSets",
    "Transitions",
    "WeightedSum",
    "advantage",
    "check_top_p",
    "chi_square_phi",
    "clip_q",
    "clipped_policy_loss",
    "cross_entropy",
    "discounted_occupancy",
    "discounted_sum",
    "ended_at_cuts",
    "expectation",
    "first_steps",
    "forward_kl",
    "forward_kl_terms",
    "hellinger_phi",
    "identity_phi",
    "implied_reward",
    "iq_learn_initial_loss",
    "iq_learn_linear_term",
    "iq_learn_loss",
    "iq_learn_nonlinear_term",
    "iq_learn_reward_term",
    "iq_learn_value_term",
    "jensen_shannon_phi",
    "jsd_terms",
    "k_step_return",
    "kappa",
    "kept_offsets",
    "kl_phi",
    "lambda_return",
    "log_mixture",
    "log_rest",
    "log_set_mass",
    "loss_of_unseen_steps",
    "masked_sum",
    "offsets_of",
    "policy_value",
    "project",
    "retrace_return",
    "reverse_kl_terms",
    "row_index",
    "sampled_gap_bound",
    "sampled_log_normaliser",
    "sampled_tail_kl",
    "segment_cumsum",
    "segment_logsumexp",
    "segment_max",
    "segment_sum",
    "set_forward_kl",
    "set_max_shift",
    "set_membership",
    "skew_kl_terms",
    "skew_reverse_kl_terms",
    "soft_actor_terms",
    "soft_bellman_backup",
    "soft_value",
    "split_at",
    "spread",
    "state_cost",
    "successor",
    "tail_mass",
    "td_error",
    "teacher_shift",
    "tilt",
    "token_sums",
    "top_p_sets",
    "total_variation_phi",
    "total_variation_terms",
    "transitions",
    "truncate",
    "truncate_by_gain",
    "truncated_sizes",
    "with_rest",
]
