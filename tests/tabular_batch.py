"""All responses of a small token MDP as one batch: expected losses are exact, not sampled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tdistill.core import Transitions, top_p_sets
from tdistill.evidence.batch import Batch, Counts
from tdistill.evidence.rows import ROW_SOURCES
from tdistill.models.layout import Layout
from tdistill.models.score_forms import DenseStepScores
from tdistill.models.set_scores import SetScores
from tdistill.tabular import (
    TERMINAL,
    TokenMDP,
    minimise,
    prefix_tree,
    project_policy,
    soft_policy,
    top_p_mask,
)
from tdistill.training.objectives import Objective, Views


@dataclass(frozen=True, eq=False)
class Problem:
    """A prefix tree, a teacher's logits, its sets, and the policies that write the rows."""

    mdp: TokenMDP
    scores: Tensor
    set_top_p: float
    other: Tensor  # writes the student's rows; probabilities on the sets
    own_writer: Tensor | None = None  # of the expert's rows; None: proj_p of the teacher
    cut: bool = False  # whether the length limit cuts a row, instead of ending it

    @cached_property
    def allowed(self) -> Tensor:
        return top_p_mask(self.scores.softmax(1), self.set_top_p)

    @cached_property
    def teacher(self) -> Tensor:
        """proj_p of the teacher."""
        return project_policy(self.scores.softmax(1), self.allowed)

    @property
    def writer(self) -> Tensor:
        """The policy of the expert's rows."""
        return self.teacher if self.own_writer is None else self.own_writer

    @cached_property
    def reached(self) -> Tensor:
        """State and token pairs that some row takes."""
        return visits(self.mdp, self.writer) + visits(self.mdp, self.other) > 0

    @cached_property
    def unknown(self) -> Tensor:
        """State and token pairs behind which rows are cut [S, V]; token 0 ends a row."""
        last = (self.mdp.next_state == TERMINAL) & torch.tensor(self.cut)
        last[:, 0] = False
        return last


def make_problem(
    vocabulary: int, depth: int, *, discount: float, set_top_p: float, seed: int
) -> Problem:
    """Teacher logits and the student's policy are drawn; the reward of the tree plays no part."""
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"discount": discount, "generator": generator}
    mdp = prefix_tree(vocabulary, depth, reward_scale=0.0, **options)
    noise = torch.randn(3, *mdp.reward.shape, generator=generator, dtype=torch.float64)
    scores = 1.2 * noise[0] + noise[2, :, :1]  # V differs from state to state
    allowed = top_p_mask(scores.softmax(1), set_top_p)
    return Problem(mdp, scores, set_top_p, soft_policy(noise[1], allowed))


def apart(problem: Problem) -> Problem:
    """Expert and student take different first tokens, so that each has states of its own."""
    first = torch.zeros_like(problem.allowed)
    first[0, problem.scores[0].argmax()] = True
    kept = {True: first, False: problem.allowed & ~first}
    kept[True][1:], kept[False][1:] = problem.allowed[1:], problem.allowed[1:]
    own, other = (project_policy(problem.scores.softmax(1), kept[key]) for key in (True, False))
    return replace(problem, own_writer=own, other=other)


def visits(mdp: TokenMDP, policy: Tensor) -> Tensor:
    """Expected visits of every state and token from state 0, undiscounted."""
    counts = torch.zeros_like(policy)
    arrive = torch.zeros(mdp.num_states, dtype=policy.dtype)
    arrive[0] = 1.0
    for state in range(mdp.num_states):  # breadth first: parents come before their children
        counts[state] = arrive[state] * policy[state]
        for token, child in enumerate(mdp.next_state[state].tolist()):
            if child != TERMINAL:
                arrive[child] += counts[state, token]
    return counts


Path = tuple[tuple[int, ...], tuple[int, ...], float]


def responses(mdp: TokenMDP, policy: Tensor) -> list[Path]:
    """States, tokens and probability of every response that the policy can write."""
    found: list[Path] = []
    open_paths: list[Path] = [((0,), (), 1.0)]
    while open_paths:
        states, tokens, probability = open_paths.pop()
        for token in policy[states[-1]].nonzero()[:, 0].tolist():
            chance = probability * float(policy[states[-1], token])
            child = int(mdp.next_state[states[-1], token])
            if child == TERMINAL:
                found.append((states, (*tokens, token), chance))
            else:
                open_paths.append(((*states, child), (*tokens, token), chance))
    return found


@dataclass(frozen=True, eq=False)
class ExactBatch:
    """Every response with its probability; logits of the steps are rows of a table [S, V]."""

    batch: Batch
    state: Tensor
    weight: Tensor

    @property
    def counts(self) -> Counts:
        """Expected steps in a thousand responses, of all rows and of the expert's."""
        steps = 1000.0 * self.weight
        return Counts(steps.sum(), steps[self.batch.expert].sum(), torch.tensor(0))

    def view(self, table: Tensor) -> SetScores:
        """A model whose logits at a state are a row of the table."""
        scores = DenseStepScores(table[self.state])
        sets, action = self.batch.sets, self.batch.action
        return SetScores(scores, sets, action, chunk_size=len(self.state))

    def expected(self, objective: Objective, table: Tensor, target: Tensor | None = None) -> Tensor:
        """The expected sum of the step losses of a response."""
        other = None if target is None else self.view(target)
        views = Views(self.view(table), target=other, counts=self.counts)
        loss = objective.loss(views, self.batch).loss
        return (self.weight * loss).sum()


def exact_batch(problem: Problem, *, student_share: float = 0.0) -> ExactBatch:
    """Responses of the expert's writer, and a share of those of the student's policy."""
    paths = [(p, "teacher", 1.0 - student_share) for p in responses(problem.mdp, problem.writer)]
    if student_share > 0.0:
        own = responses(problem.mdp, problem.other)
        paths += [(p, "student", student_share) for p in own]
    lengths = torch.tensor([len(p[1]) for p, _, _ in paths])
    row = torch.repeat_interleave(torch.arange(len(paths)), lengths)
    state = torch.tensor([s for p, _, _ in paths for s in p[0]])
    action = torch.tensor([a for p, _, _ in paths for a in p[1]])
    weight = torch.tensor([p[2] * share for p, _, share in paths], dtype=torch.float64)[row]
    last = torch.zeros(len(state), dtype=torch.bool)
    last[lengths.cumsum(0) - 1] = True
    log_probs = problem.scores.log_softmax(1)
    sets = top_p_sets(log_probs[state], problem.set_top_p)
    cut = problem.unknown[state, action]
    discount = problem.mdp.discount * (~last | cut).double()
    nothing = torch.zeros(len(paths), 1, dtype=torch.long)
    taken = log_probs[state, action]
    batch = Batch(
        layout=Layout(nothing, nothing + 1, row, torch.zeros_like(row)),
        row=row,
        action=action,
        transitions=Transitions(discount, ~last, ~cut),
        trained=torch.ones_like(last),
        out_of_set=torch.zeros_like(last),
        sets=sets,
        teacher_log_normaliser=problem.scores.logsumexp(1)[state],
        teacher_action_log_prob=taken,
        behaviour_log_prob=taken,
        source=torch.tensor([ROW_SOURCES.index(source) for _, source, _ in paths]),
    )
    return ExactBatch(batch, state, weight)


def solve(objective: Any, exact: ExactBatch, start: Tensor, *, depth: int) -> Tensor:
    """The table that an objective ends at: a minimum, or the fixed point of its semi-gradient."""
    if getattr(objective, "successor", "residual") == "residual":
        return minimise(lambda table: exact.expected(objective, table), start, tolerance=1e-7)
    held, table = replace(objective, successor="target"), start
    for _ in range(depth):  # a step back a round: leaves first
        previous = table
        table = minimise(
            lambda t, held=held, p=previous: exact.expected(held, t, p), previous, tolerance=1e-7
        )
    return table
