from __future__ import annotations

from dataclasses import dataclass

import padded
import pytest
import torch
from torch import Tensor

from tdistill.core import (
    TopPSets,
    chi_square_phi,
    discounted_occupancy,
    expectation,
    first_steps,
    identity_phi,
    implied_reward,
    iq_learn_initial_loss,
    iq_learn_linear_term,
    iq_learn_loss,
    iq_learn_nonlinear_term,
    iq_learn_reward_term,
    iq_learn_value_term,
    project,
    segment_sum,
    soft_value,
    successor,
    top_p_sets,
    transitions,
)

GAMMAS = [0.0, 0.3, 0.9, 0.99, 1.0]
LENGTHS = torch.tensor([4, 1, 1, 6, 3])
ENDED = torch.tensor([True, True, False, False, True])
STEPS, VOCABULARY = 15, 25


def chi_square(x: Tensor) -> Tensor:
    return chi_square_phi(x, alpha=0.1)


@dataclass
class Batch:
    """A teacher's sets, a student's logits, the position of each taken action in its set."""

    sets: TopPSets
    logits: Tensor
    taken: Tensor
    weight: Tensor

    def terms(self, logits: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Value, Q of the taken action, next value and discount, with the ragged functions."""
        q = logits[self.sets.step, self.sets.ids]
        value = soft_value(q, self.sets.offsets)
        links = transitions(LENGTHS, ENDED, discount=gamma)
        q_a = q[self.sets.offsets[:-1] + self.taken]
        return value, q_a, successor(value, links.has_successor), links.discount

    def padded_terms(self, logits: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same with the padded ones."""
        rows, real = padded.pad(logits[self.sets.step, self.sets.ids], self.sets.offsets, 0.0)
        value = padded.soft_value(rows, real)
        q_a = rows.gather(1, self.taken[:, None]).squeeze(1)
        discount = padded.discounts(LENGTHS, ENDED, gamma)
        return value, q_a, padded.next_value(value, LENGTHS), discount

    def gradient(self, loss: Tensor, logits: Tensor) -> Tensor:
        """Gradient of a random mix of the steps, so that no step can hide behind another."""
        return torch.autograd.grad((self.weight * loss).sum(), logits, retain_graph=True)[0]


@pytest.fixture
def batch(generator: torch.Generator) -> Batch:
    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sets = top_p_sets((2 * noise(STEPS, VOCABULARY)).log_softmax(-1), 0.8)
    taken = (torch.rand(STEPS, generator=generator) * sets.sizes).long()
    logits = (3 * noise(STEPS, VOCABULARY)).requires_grad_()
    return Batch(sets, logits, taken, noise(STEPS))


def test_hand_computed_values():
    def one(x: float) -> Tensor:
        return torch.tensor([x], dtype=torch.float64)

    # V = 3, Q = 2.5, V' = 2, discount 0.5: r = 1.5, r^2 / (4 alpha) = 5.625 at alpha 0.1.
    value, q_a, following, discount = one(3.0), one(2.5), one(2.0), one(0.5)
    reward = implied_reward(q_a, following, discount)
    assert reward.item() == 1.5
    assert identity_phi(reward).item() == 1.5
    assert chi_square(reward).item() == pytest.approx(1.5 - 5.625)
    assert iq_learn_reward_term(reward, chi_square).item() == pytest.approx(5.625 - 1.5)
    assert iq_learn_value_term(value, following, discount).item() == 2.0
    assert iq_learn_linear_term(value, q_a).item() == 0.5
    assert iq_learn_nonlinear_term(reward, chi_square).item() == pytest.approx(5.625)
    assert iq_learn_nonlinear_term(reward, identity_phi).item() == 0.0
    loss = iq_learn_loss(value, q_a, following, discount, phi=chi_square)
    assert loss.item() == pytest.approx(0.5 + 5.625)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_identity_phi_telescopes_into_cloning_on_the_set(batch: Batch, gamma: float):
    loss = iq_learn_loss(*batch.terms(batch.logits, gamma), phi=identity_phi)
    rows, real = padded.pad(batch.logits[batch.sets.step, batch.sets.ids], batch.sets.offsets, 0.0)
    log_policy = padded.project(rows, real).gather(1, batch.taken[:, None]).squeeze(1)
    assert (loss + log_policy).abs().max() < 1e-12
    gap = batch.gradient(loss, batch.logits) - batch.gradient(-log_policy, batch.logits)
    assert gap.abs().max() < 1e-12
    # The library's own projection and its linear term say the same.
    starts = batch.sets.offsets[:-1] + batch.taken
    members = batch.logits[batch.sets.step, batch.sets.ids]
    cloning = -project(members, batch.sets.offsets)[starts]
    value, q_a, _, _ = batch.terms(batch.logits, gamma)
    for other in (cloning, iq_learn_linear_term(value, q_a)):
        assert (loss - other).abs().max() < 1e-12
        gap = batch.gradient(loss, batch.logits) - batch.gradient(other, batch.logits)
        assert gap.abs().max() < 1e-12


def test_chi_square_does_not_telescope(batch: Batch):
    losses = [iq_learn_loss(*batch.terms(batch.logits, g), phi=chi_square) for g in (0.3, 0.9)]
    assert (losses[0] - losses[1]).abs().max() > 0.1


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_the_loss_as_written_equals_the_closed_form(batch: Batch, gamma: float, alpha: float):
    def phi(x: Tensor) -> Tensor:
        return chi_square_phi(x, alpha=alpha)

    value, q_a, following, discount = batch.terms(batch.logits, gamma)
    written = iq_learn_loss(value, q_a, following, discount, phi=phi)
    reward = implied_reward(q_a, following, discount)
    parts = iq_learn_linear_term(value, q_a) + iq_learn_nonlinear_term(reward, phi)
    expectations = iq_learn_reward_term(reward, phi) + iq_learn_value_term(
        value, following, discount
    )
    plain = padded.chi_square_loss(*batch.padded_terms(batch.logits, gamma), alpha)
    written_gradient = batch.gradient(written, batch.logits)
    for other in (parts, expectations, plain):
        torch.testing.assert_close(written, other, rtol=1e-12, atol=1e-12)
        other_gradient = batch.gradient(other, batch.logits)
        torch.testing.assert_close(written_gradient, other_gradient, rtol=1e-11, atol=1e-11)


def test_logits_outside_the_set_get_no_gradient(batch: Batch):
    loss = iq_learn_loss(*batch.terms(batch.logits, 0.9), phi=chi_square)
    grad = batch.gradient(loss, batch.logits)
    outside = torch.ones(STEPS, VOCABULARY, dtype=torch.bool)
    outside[batch.sets.step, batch.sets.ids] = False
    assert outside.any()
    assert (grad[outside] == 0).all()
    assert (grad[~outside] != 0).any()


def test_a_shift_per_state_changes_chi_square_but_not_identity(batch: Batch):
    shifted = batch.logits + torch.arange(STEPS, dtype=torch.float64)[:, None]

    def loss(logits: Tensor, phi) -> Tensor:
        return iq_learn_loss(*batch.terms(logits, 0.9), phi=phi)

    same = loss(shifted, identity_phi) - loss(batch.logits, identity_phi)
    assert same.abs().max() < 1e-12
    assert (loss(shifted, chi_square) - loss(batch.logits, chi_square)).abs().max() > 1.0


def test_the_expected_action_gives_the_mean_of_the_sampled_ones(batch: Batch):
    sets = batch.sets
    q = batch.logits[sets.step, sets.ids]
    value, teacher = soft_value(q, sets.offsets), project(sets.log_probs, sets.offsets)
    expected = iq_learn_linear_term(value, expectation(q, teacher, sets.offsets))
    every_action = iq_learn_linear_term(value[sets.step], q)
    mean = segment_sum(teacher.exp() * every_action, sets.offsets)
    torch.testing.assert_close(expected, mean)


def test_a_weight_of_phi_makes_a_mean_over_all_steps_one_over_the_expert_steps(batch: Batch):
    value, q_a, following, discount = batch.terms(batch.logits, 0.9)
    reward, flow = q_a - discount * following, iq_learn_value_term(value, following, discount)
    expert = torch.arange(STEPS) % 3 != 0
    weight = torch.where(expert, STEPS / expert.sum(), 1.0)
    nonlinear = iq_learn_nonlinear_term(reward, chi_square, weight)
    found = torch.where(expert, iq_learn_linear_term(value, q_a), flow) + nonlinear
    own = (reward - chi_square(reward))[~expert].sum() / STEPS
    mean = flow.mean() - chi_square(reward)[expert].mean() + own  # E_all[V - V'] - E_E[phi]
    torch.testing.assert_close(found.mean(), mean)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_initial_form_sums_to_the_first_value_minus_the_discounted_phi(
    batch: Batch, gamma: float
):
    value, q_a, following, discount = batch.terms(batch.logits, gamma)
    reward, flow = q_a - discount * following, iq_learn_value_term(value, following, discount)
    row = torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS)
    followed = transitions(LENGTHS, ENDED, discount=gamma).has_successor
    weights, first = discounted_occupancy(followed, discount=gamma), first_steps(followed)
    parts = iq_learn_linear_term(value, q_a) + iq_learn_nonlinear_term(reward, chi_square)
    found = iq_learn_initial_loss(parts, value, flow, weights, first)
    for r, length in enumerate(LENGTHS.tolist()):
        powers = gamma ** torch.arange(length, dtype=torch.float64)
        mine, phi = row == r, chi_square(reward)[row == r]
        expected = (value[mine][0] - (powers * phi).sum()) / powers.sum()
        torch.testing.assert_close(found[mine].mean(), expected, rtol=1e-6, atol=1e-6)
        if ENDED[r]:  # the values telescope
            cancelled = (powers * parts[mine]).sum() / powers.sum()
            torch.testing.assert_close(expected, cancelled)


@pytest.mark.parametrize("phi", [identity_phi, chi_square])
def test_gradcheck(batch: Batch, phi):
    def loss(logits: Tensor) -> Tensor:
        return iq_learn_loss(*batch.terms(logits, 0.75), phi=phi)

    assert torch.autograd.gradcheck(loss, batch.logits)


def test_gradcheck_of_every_term():
    inputs = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs.requires_grad_()
    for function in (
        lambda x: chi_square(x[0]),
        lambda x: identity_phi(x[0]),
        lambda x: iq_learn_reward_term(x[0], chi_square),
        lambda x: iq_learn_nonlinear_term(x[0], chi_square),
        lambda x: iq_learn_linear_term(x[0], x[1]),
        lambda x: iq_learn_value_term(x[0], x[1], x[2]),
        lambda x: iq_learn_loss(x[0], x[1], x[2], x[3], phi=chi_square),
        lambda x: iq_learn_nonlinear_term(x[0], chi_square, torch.tensor([0.0, 1.5, 1.0])),
        lambda x: iq_learn_initial_loss(x[0], x[1], x[2], torch.ones(3), torch.arange(3) == 0),
    ):
        assert torch.autograd.gradcheck(function, inputs)


def test_float32_is_no_less_accurate_than_the_padded_form(generator: torch.Generator):
    errors: dict[str, list[Tensor]] = {"ragged": [], "plain": []}
    for _ in range(20):
        logits = torch.randn(STEPS, 4_000, generator=generator)
        sets = top_p_sets((2 * torch.randn(STEPS, 4_000, generator=generator)).log_softmax(-1), 0.9)
        batch = Batch(sets, logits, torch.zeros(STEPS, dtype=torch.long), torch.ones(STEPS))
        truth = padded.chi_square_loss(*batch.padded_terms(logits.double(), 0.99), 0.1)
        ragged = iq_learn_loss(*batch.terms(logits, 0.99), phi=chi_square)
        plain = padded.chi_square_loss(*batch.padded_terms(logits, 0.99), 0.1)
        errors["ragged"].append(((ragged.double() - truth) / truth).abs())
        errors["plain"].append(((plain.double() - truth) / truth).abs())
    mean = {name: torch.cat(parts).mean() for name, parts in errors.items()}
    # (4.2) as written subtracts and adds the discounted value, which costs a fraction of a unit.
    assert mean["ragged"] <= mean["plain"] + torch.finfo(torch.float32).eps / 2
