from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tdistill.training.target import TargetNetwork
from tiny import tiny_model
from world import student


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def moved(model: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)
    return model


def test_the_average_starts_as_a_frozen_copy() -> None:
    model = student().train()
    target = TargetNetwork(model, 0.9)
    before = weights(model)
    moved(model, 1.0)
    torch.testing.assert_close(weights(target.model), before)
    assert not any(p.requires_grad for p in target.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not target.model.training and model.training


def test_updates_are_an_exponential_average() -> None:
    model = student()
    target = TargetNetwork(model, 0.75)
    start = weights(model)
    target.update(moved(model, 1.0))
    torch.testing.assert_close(weights(target.model), [w + 0.25 for w in start])
    target.update(moved(model, 1.0))  # 0.75 (w + 0.25) + 0.25 (w + 2)
    torch.testing.assert_close(weights(target.model), [w + 0.6875 for w in start])
    torch.testing.assert_close(weights(model), [w + 2.0 for w in start])


def test_decay_0_copies_the_student() -> None:
    model = student()
    target = TargetNetwork(model, 0.0)
    target.update(moved(model, 0.5))
    torch.testing.assert_close(weights(target.model), weights(model))


def test_the_student_inside_a_wrapper_is_the_one_averaged() -> None:
    model = student()
    target = TargetNetwork(model, 0.5)
    wrapper = nn.Module()
    wrapper.module = moved(model, 1.0)
    start = weights(target.model)
    target.update(wrapper)
    torch.testing.assert_close(weights(target.model), [w + 0.5 for w in start])


def test_saved_and_loaded_bit_for_bit_also_with_tied_weights(tmp_path: Path) -> None:
    for family in ("llama", "gpt2"):
        model = tiny_model(family)
        target = TargetNetwork(model, 0.9)
        target.update(moved(model, 0.3))
        target.save(tmp_path)
        other = TargetNetwork(tiny_model(family, seed=8), 0.9)
        other.load(tmp_path)
        for one, two in zip(weights(target.model), weights(other.model), strict=True):
            assert one.equal(two)
