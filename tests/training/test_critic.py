"""The critic: where it starts, what it costs the student, and runs that must coincide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tdistill.errors import InvalidValueError, ModelError
from tdistill.models.language_model import LanguageModel
from tdistill.models.score_forms import DenseStepScores
from tdistill.models.set_scores import SetScores
from tdistill.training.config import TrainConfig
from tdistill.training.critic import CRITIC_FILE, Critic, CriticLearner, load_critic
from tdistill.training.objectives import CriticConfig, ValueTiltedKD
from tdistill.training.train import train_student
from tiny import VOCABULARY, tiny_model, tokenizer
from world import inside_rows, live, make_batch, make_trainer, model_view, student

FORMS: tuple[Any, ...] = ("map", "low-rank", "mlp", "rows")
CPU = torch.device("cpu")


def own(values: Tensor) -> Tensor:
    return values


def dense(critic: Critic, hidden: Tensor) -> Tensor:
    """g of every token at every state, as the docstring says it."""
    unit = hidden / hidden.square().mean(1, keepdim=True).sqrt()
    value = unit @ critic.value / hidden.shape[1] + critic.offset
    return value[:, None] + critic.scale * critic.function(unit) @ critic.table.T


@pytest.mark.parametrize("form", FORMS)
def test_it_is_0_at_the_start_and_learns_what_it_is_shown(form: Any) -> None:
    batch, network = make_batch(list(inside_rows(8))), student()
    learner = CriticLearner(network, CriticConfig(form=form, learning_rate=0.3), CPU)
    view = model_view(network, batch)
    wanted = torch.linspace(0.0, 3.0, len(batch.action))
    scores, averaged = learner.scores(view, batch)
    assert not scores.on_set.any() and not averaged.action.any()
    for _ in range(400):
        scores, _ = learner.scores(view, batch)
        ((scores.action - wanted) ** 2).mean().backward()
        learner.update(factor=1.0, mean=own)
    scores, averaged = learner.scores(view, batch)
    assert (scores.action - wanted).square().mean() < 0.1 * wanted.var()
    expected = dense(learner.critic, view.scores.hidden)[batch.sets.step, batch.sets.ids]
    torch.testing.assert_close(scores.on_set, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(averaged.on_set, scores.on_set)  # no average was asked for
    assert not averaged.on_set.requires_grad
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [16, 256])
def test_one_update_moves_it_by_about_its_learning_rate(form: Any, width: int) -> None:
    torch.manual_seed(0)
    config = CriticConfig(form=form, rank=8, learning_rate=0.01)
    critic = Critic(torch.randn(50, width), width, config)
    if form == "rows":
        nn.init.zeros_(critic.table)
    hidden = torch.randn(1, width)
    optimizer = torch.optim.Adam(critic.parameters(), lr=config.learning_rate)
    critic.scores(hidden).at(torch.tensor([7]), torch.tensor([0])).sum().backward()
    optimizer.step()
    moved = -critic.scores(hidden).at(torch.tensor([7]), torch.tensor([0])).item()
    # The value's part, its offset's and the token's own, each of about one learning rate.
    assert 0.01 < moved < 0.04


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_its_gradient_reaches_the_student_only_where_asked(weight: float) -> None:
    batch, network = make_batch(), student()
    learner = CriticLearner(network, CriticConfig(into_student=weight), CPU)
    nn.init.normal_(learner.critic.value)
    scores, _ = learner.scores(model_view(network, batch), batch)
    scores.on_set.sum().backward()
    reached = [p.grad for p in network.parameters() if p.grad is not None]
    assert bool(reached) == (weight > 0.0)
    if reached:
        once = [gradient.clone() for gradient in reached]
        network.zero_grad()
        learner.config = replace(learner.config, into_student=2 * weight)
        learner.scores(model_view(network, batch), batch)[0].on_set.sum().backward()
        again = [p.grad for p in network.parameters() if p.grad is not None]
        torch.testing.assert_close(again, [2 * gradient for gradient in once])


def test_the_average_follows_by_its_decay() -> None:
    learner = CriticLearner(student(), CriticConfig(averaged=0.75), CPU)
    learner.critic.offset.grad = torch.ones(())
    learner.update(factor=1.0, mean=own)
    torch.testing.assert_close(learner.averaged.offset, 0.25 * learner.critic.offset)
    assert learner.averaged.offset != 0.0


def test_the_schedule_of_the_student_is_its_own() -> None:
    moves = []
    for factor in (1.0, 0.5):
        learner = CriticLearner(student(), CriticConfig(learning_rate=0.2), CPU)
        learner.critic.offset.grad = torch.ones(())
        learner.update(factor=factor, mean=own)
        moves.append(learner.critic.offset.item())
    assert moves == pytest.approx([-0.2, -0.1])


def test_gradients_are_averaged_over_processes() -> None:
    learner = CriticLearner(student(), CriticConfig(), CPU)
    asked: list[Tensor] = []

    def mean(gradient: Tensor) -> Tensor:
        asked.append(gradient)
        return torch.zeros_like(gradient)  # the other process had the opposite one

    learner.critic.offset.grad = torch.ones(())
    learner.update(factor=1.0, mean=mean)
    # Also those without a gradient, and the lengths of hidden states.
    assert len(asked) == len(list(learner.critic.parameters())) + 1
    assert learner.critic.offset == 0.0


def test_a_model_without_an_output_layer_is_refused() -> None:
    batch = make_batch()
    view = SetScores(
        DenseStepScores(torch.zeros(len(batch.action), VOCABULARY)), batch.sets, batch.action
    )
    with pytest.raises(ModelError, match="critic: expected a model whose output layer"):
        CriticLearner(student(), CriticConfig(), CPU).scores(view, batch)


def test_full_logits_give_the_same_critic(tmp_path: Path) -> None:
    batch, network = make_batch(), tiny_model("llama", seed=3)
    one, two = (
        make_trainer(tmp_path, ValueTiltedKD(), model=network, head=head)._scores(
            network, batch.to(next(network.parameters()).device)
        )
        for head in ("linear", "full")
    )
    torch.testing.assert_close(one.scores.hidden, two.scores.hidden)


@pytest.mark.parametrize(
    "field", ["rank", "learning_rate", "price_rate", "averaged", "into_student"]
)
def test_settings_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{field}: expected"):
        CriticConfig(**{field: -1})


def test_a_checkpoint_holds_it_and_the_students_folder_does_not(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ValueTiltedKD(), steps=2, save_steps=1)
    trainer.train()
    found = load_file(tmp_path / "checkpoint-1" / CRITIC_FILE)
    assert {name.split(".")[0] for name in found} == {"critic", "averaged", "optimizer"}
    weights = [n for n, _ in trainer.model.named_parameters()]
    assert not any("critic" in name for name in weights)


@pytest.mark.parametrize("kept", [True, False])
def test_a_finished_critic_is_kept_where_asked(kept: bool, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    train_student(
        LanguageModel(student(), tokenizer(), "student"),
        ValueTiltedKD(),
        list(inside_rows(8)),
        TrainConfig(steps=2, batch_size=4, warmup_steps=0, learning_rate=1e-3),
        checkpoints=tmp_path / "checkpoints",
        vocabulary_size=VOCABULARY,
        source=live(),
        critic_folder=folder if kept else None,
    )
    assert (folder / CRITIC_FILE).exists() == kept
    if kept:
        found = load_file(folder / CRITIC_FILE)
        assert set(found) == {
            "value",
            "offset",
            "price",
            "length",
            "constant",
            "table",
            "function.weight",
        }
        assert found["value"].any()
        critic = load_critic(folder, ValueTiltedKD().critic)
        hidden = torch.randn(3, len(found["value"]), generator=torch.Generator().manual_seed(0))
        ids, step = (
            torch.arange(VOCABULARY).repeat(3),
            torch.arange(3).repeat_interleave(VOCABULARY),
        )
        scores = critic.scores(hidden).at(ids, step).view(3, -1)
        torch.testing.assert_close(scores, dense(critic, hidden), rtol=1e-5, atol=1e-6)
        assert scores.any() and not any(w.requires_grad for w in critic.parameters())
