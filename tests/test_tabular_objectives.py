"""Every objective reaches its own optimum, computed exactly by another path, on drawn problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tabular_batch import Problem, apart, exact_batch, make_problem, solve, visits
from tabular_optima import (
    constant_reward,
    discounted,
    least_squares,
    log_teacher,
    mixed,
    own_reward,
    projected_teacher,
    residual_iq,
    semi_iq,
    set_reward,
    shares,
    whole_reward,
)
from tdistill import core
from tdistill.tabular import per_state_gap, soft_optimal_q, soft_policy, with_teacher
from tdistill.training.objectives import (
    CSIL,
    GKD,
    JSD,
    KD,
    LSIQ,
    SFT,
    SQIL,
    BellmanDistill,
    BoundedIQ,
    IQLearn,
    PathConsistency,
    ReverseKL,
    SeqKD,
    SkewKL,
    SkewReverseKL,
    SoftTD,
    Views,
)

# No shrinking: a problem is solved in seconds, and all are small.
few = settings(max_examples=2, phases=[Phase.generate], deadline=None, derandomize=True)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    vocabulary, depth = draw(st.sampled_from([(3, 2), (3, 3), (4, 2)]))
    discount = draw(st.sampled_from([0.5, 0.9, 0.99]))
    set_top_p = draw(st.sampled_from([0.6, 0.8, 0.9, 1.0]))
    return make_problem(
        vocabulary, depth, discount=discount, set_top_p=set_top_p, seed=draw(st.integers(0, 999))
    )


def chi_square(alpha: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x - x**2 / (4 * alpha)


SMOOTH: dict[Any, Callable[[Tensor], Tensor]] = {
    "hellinger": lambda x: core.hellinger_phi(x, alpha=4.0),
    "kl": lambda x: core.kl_phi(x, alpha=4.0),
    "jensen-shannon": lambda x: core.jensen_shannon_phi(x, alpha=4.0),
}

Optimum = Callable[[Problem], Tensor]
# One line an objective: what is trained, the policy where it must end.
CASES: dict[str, tuple[Any, Optimum]] = {
    "sft": (SFT(), projected_teacher),  # the references here are the teacher's
    "seqkd": (SeqKD(), projected_teacher),
    "kd": (KD(), projected_teacher),
    "identity": (BellmanDistill(phi="identity"), projected_teacher),
    "chi-square, residual": (BellmanDistill(alpha=0.8), residual_iq(chi_square(0.8))),
    "chi-square, residual, sampled": (
        BellmanDistill(alpha=2.0, linear_term="sampled"),
        residual_iq(chi_square(2.0)),
    ),
    "chi-square, semi": (BellmanDistill(alpha=0.8, successor="semi"), semi_iq(chi_square(0.8))),
    "soft td": (SoftTD(), own_reward),
    "soft td, set": (SoftTD(normaliser="set"), own_reward),
    "soft td, k-step": (SoftTD(returns="k-step", horizon=2), own_reward),
    "soft td, lambda": (SoftTD(returns="lambda", trace=0.7), own_reward),
    "soft td, semi": (SoftTD(successor="semi"), own_reward),
    "soft td, k-step, semi": (SoftTD(returns="k-step", successor="semi"), own_reward),
    "soft td, lambda, semi": (SoftTD(returns="lambda", successor="semi"), own_reward),
    "soft td, normalised": (SoftTD(shift="normalised", normaliser="set"), projected_teacher),
    "soft td, whole": (SoftTD(teacher_value="vocabulary"), whole_reward),
    "path consistency": (PathConsistency(horizon=2), own_reward),
    "path consistency, whole": (PathConsistency(teacher_value="vocabulary"), whole_reward),
    "csil": (CSIL(), projected_teacher),
    "csil, lambda": (CSIL(returns="lambda", cloning_weight=0.0), projected_teacher),
    "csil, sharper": (CSIL(reward_scale=2.0, cloning_weight=0.0), log_teacher(2.0)),
    "bounded, wide": (BoundedIQ(lowest_reward=-20.0, highest_reward=20.0), projected_teacher),
    "bounded, to zero": (
        BoundedIQ(lowest_reward=0.0, highest_reward=0.0, penalty=0.25),
        semi_iq(chi_square(1.0)),
    ),
    "sqil": (SQIL(expert_reward=2.0, student_weight=0.5), constant_reward(2.0, 0.5, 0.5)),
    "sqil, little": (SQIL(student_share=0.2), constant_reward(1.0, 1.0, 0.5)),  # still halves
    "sqil, by steps": (
        SQIL(student_share=0.2, balance="steps"),
        constant_reward(1.0, 1.0, 0.2, by=shares),
    ),
    "centred": (BellmanDistill(alpha=0.5, centre="teacher"), projected_teacher),
    "centred, semi": (
        BellmanDistill(alpha=0.5, centre="teacher", successor="semi"),
        projected_teacher,
    ),
    **{
        f"{name}, residual": (BellmanDistill(phi=name, alpha=4.0), residual_iq(phi))
        for name, phi in SMOOTH.items()
    },
    **{
        f"{name}, semi": (BellmanDistill(phi=name, alpha=4.0, successor="semi"), semi_iq(phi))
        for name, phi in SMOOTH.items()
    },
    "iq-learn": (IQLearn(alpha=0.8), residual_iq(chi_square(0.8))),
    "iq-learn, initial": (
        IQLearn(alpha=0.8, second_term="initial", normaliser="set"),
        residual_iq(chi_square(0.8), discounted),
    ),
    "iq-learn, online": (
        IQLearn(alpha=0.8, second_term="online", student_share=0.3),
        residual_iq(chi_square(0.8), mixed(0.3)),
    ),
    "gkd": (GKD(beta=0.3), projected_teacher),
    "reverse kl, set": (ReverseKL(support="set"), projected_teacher),
    "reverse kl, tail": (ReverseKL(), projected_teacher),
    "kd, tail": (KD(support="set-and-tail"), projected_teacher),
    "jsd": (JSD(beta=0.3), projected_teacher),
    "jsd, tail": (JSD(support="set-and-tail"), projected_teacher),
    "skewed kl": (SkewKL(), projected_teacher),
    "skewed reverse kl": (SkewReverseKL(), projected_teacher),
    "ls-iq": (LSIQ(penalty=2.0, normaliser="set"), least_squares(2.0, 0.5, absorbing=True)),
    "ls-iq, no absorbing": (
        LSIQ(penalty=1.0, absorbing=False, normaliser="set"),
        least_squares(1.0, 0.5, absorbing=False),
    ),
    "ls-iq, by steps": (
        LSIQ(penalty=2.0, normaliser="set", student_share=0.2, balance="steps"),
        least_squares(2.0, 0.2, absorbing=True, by=shares),
    ),
}


# Half a minute of search for one problem.
LONG = {"centred, semi"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c in LONG)) for c in CASES]
)
@few
@given(problem=problems(), seed=st.integers(0, 999))
def test_the_objective_reaches_its_own_optimum(case: str, problem: Problem, seed: int) -> None:
    check_optimum(*CASES[case], problem, seed=seed)


# What a cut may leave undetermined or unbounded, and the forms that must bear it.
CUT = (
    "iq-learn",
    "iq-learn, online",
    "iq-learn, initial",
    "chi-square, semi",
    "centred",
    "centred, semi",
    "bounded, wide",
    "bounded, to zero",
    "soft td",
    "soft td, k-step",
    "soft td, lambda, semi",
    "soft td, normalised",
    "soft td, whole",
    "path consistency",
    "csil, lambda",
    "csil, sharper",
    "sqil",
    "ls-iq",
    "ls-iq, no absorbing",
)


@pytest.mark.parametrize("case", CUT)
def test_the_optimum_is_determined_where_rows_are_cut(case: str) -> None:
    """By the teacher's value behind the cut, or none: the policies there are the same as ended."""
    problem = make_problem(3, 2, discount=0.9, set_top_p=0.9, seed=1)
    problem = replace(problem, cut=True)
    assert problem.unknown[problem.reached].any()
    check_optimum(*CASES[case], problem, seed=2)


@pytest.mark.parametrize("phi", ["chi-square", "hellinger", "kl", "jensen-shannon"])
def test_online_reaches_its_optimum_where_only_one_policy_goes(phi: Any) -> None:
    """No first token is both the expert's and the student's, and the length limit cuts."""
    problem = apart(make_problem(3, 2, discount=0.9, set_top_p=1.0, seed=3))
    problem = replace(problem, cut=True)
    expert, student = (visits(problem.mdp, p) > 0 for p in (problem.writer, problem.other))
    assert not (expert & student).any() and expert[1:].any() and student[1:].any()
    function = {**SMOOTH, "chi-square": chi_square(4.0)}[phi]
    objective = IQLearn(phi=phi, alpha=4.0, second_term="online", student_share=0.5)
    check_optimum(objective, residual_iq(function, mixed(0.5)), problem, seed=4, known_only=True)


@pytest.mark.parametrize(
    "objective", [BellmanDistill(phi="identity"), BoundedIQ(lowest_reward=-30.0, successor="semi")]
)
def test_a_sampled_linear_term_clones_the_policy_that_wrote_the_rows(objective: Any) -> None:
    problem = make_problem(3, 2, discount=0.9, set_top_p=0.9, seed=5)
    problem = replace(problem, own_writer=problem.other)
    assert (problem.other - problem.teacher).abs().max() > 0.1
    if isinstance(objective, BellmanDistill):
        check_optimum(objective, projected_teacher, problem, seed=6)
        objective = replace(objective, linear_term="sampled")
    check_optimum(objective, lambda problem: problem.other, problem, seed=6)


def check_optimum(
    objective: Any, optimum: Optimum, problem: Problem, *, seed: int, known_only: bool = False
) -> None:
    """Where it ends from a drawn start; ``known_only``: only at states with known successors."""
    objective = replace(objective, discount=problem.mdp.discount)
    share = objective.student_share
    exact = exact_batch(problem, student_share=share)
    start = torch.randn(problem.scores.shape, generator=torch.Generator().manual_seed(seed))
    found = solve(objective, exact, start.double(), depth=3).requires_grad_()
    slope = torch.autograd.grad(exact.expected(objective, found), found)[0]
    # With the gradient as the objective itself stops it; Q of constant rewards is in the hundreds.
    assert slope.abs().max() < 1e-6 * (1.0 + found.detach().abs().max())
    reached = problem.reached.any(1) & ~(problem.unknown.any(1) & known_only)
    policy = soft_policy(found.detach(), problem.allowed)
    error = (policy - optimum(problem))[reached].abs().max()
    assert error < 1e-5
    outside = (found.detach().softmax(1) * ~problem.allowed).sum(1)
    if getattr(objective, "support", None) == "set-and-tail":  # the tail is the teacher's own
        tail = (problem.scores.softmax(1) * ~problem.allowed).sum(1)
        torch.testing.assert_close(outside[reached], tail[reached], rtol=0.0, atol=1e-5)
    elif "set" not in (getattr(objective, name, None) for name in ("normaliser", "support")):
        assert outside[reached].max() < 1e-6


@few
@given(problem=problems())
def test_the_teachers_own_q_has_no_soft_td_error_on_its_sets(problem: Problem) -> None:
    """Over the vocabulary, the error is what the next set leaves out; without truncation, none."""
    exact = exact_batch(problem)
    view = exact.view(problem.scores)
    objective = SoftTD(discount=problem.mdp.discount)
    own = objective.loss(Views(view), exact.batch).parts["td_error"]
    assert own.abs().max() < 1e-12
    whole = replace(objective, teacher_value="vocabulary")
    found = whole.loss(Views(view), exact.batch).parts["td_error"]
    kept = (problem.scores.softmax(1) * problem.allowed).sum(1).log()[exact.state]
    lost = exact.batch.transitions.discount * core.successor(
        kept, exact.batch.transitions.has_successor
    )
    torch.testing.assert_close(found, lost, rtol=1e-10, atol=1e-12)
    assert (problem.set_top_p == 1.0) == (found.abs().max() < 1e-12)


@few
@given(problem=problems())
def test_truncation_costs_q_at_most_the_bounds(problem: Problem) -> None:
    """Q_T - Q_p*, of the two optima of soft_td, is within (3.3), hence within kappa."""
    whole = with_teacher(problem.mdp, problem.scores)
    gap = problem.scores - soft_optimal_q(whole, problem.allowed)
    own = soft_optimal_q(replace(whole, reward=set_reward(problem)), problem.allowed)
    torch.testing.assert_close(own[problem.reached], problem.scores[problem.reached])
    bound = per_state_gap(problem.mdp, problem.scores.softmax(1), problem.allowed)
    inside = problem.reached
    assert (gap[inside] > -1e-9).all()
    assert (gap - bound)[inside].max() < 1e-9
    most = core.kappa(problem.set_top_p, problem.mdp.discount)
    assert gap[inside].max() <= most + 1e-9


def test_sqil_without_the_students_rows_is_soft_q_on_a_constant() -> None:
    problem = make_problem(3, 3, discount=0.9, set_top_p=0.9, seed=5)
    exact = exact_batch(problem)
    objective = SQIL(expert_reward=0.5, student_weight=0.0, discount=0.9)
    found = solve(objective, exact, torch.zeros_like(problem.scores), depth=3)
    constant = replace(problem.mdp, reward=torch.full_like(problem.scores, 0.5))
    optimal = soft_optimal_q(constant, problem.allowed)
    torch.testing.assert_close(
        found[problem.reached], optimal[problem.reached], rtol=1e-6, atol=1e-6
    )
