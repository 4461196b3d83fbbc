from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tdistill.training.running import RunningMeans


def alone(values: Tensor) -> Tensor:
    return values


def sums(total: float, weight: float) -> dict[str, tuple[Tensor, Tensor]]:
    return {"x": (torch.tensor([total]), torch.tensor([weight]))}


def test_means_are_of_earlier_updates_and_of_all_their_parts() -> None:
    means = RunningMeans(decay=0.5)
    means.observe(sums(6.0, 2.0))
    means.observe(sums(4.0, 3.0))
    assert means.means() == {}  # the present update is not over
    means.update(alone)
    assert means.means()["x"].item() == pytest.approx(10.0 / (5.0 + 1.0))
    means.observe(sums(1.0, 1.0))
    means.update(alone)
    assert means.means()["x"].item() == pytest.approx((5.0 + 1.0) / (2.5 + 1.0 + 1.0))


def test_sums_are_added_over_processes_before_they_are_divided() -> None:
    means = RunningMeans()
    means.observe(sums(1.0, 1.0))
    means.update(lambda pair: pair + torch.tensor([[9.0], [4.0]]))  # another process has seen more
    assert means.means()["x"].item() == pytest.approx(10.0 / (5.0 + 1.0))


def test_what_was_never_seen_is_0_and_what_was_seen_once_is_no_rule() -> None:
    means = RunningMeans()
    means.observe({"x": (torch.tensor([0.0, 2.0, 200.0]), torch.tensor([0.0, 1.0, 100.0]))})
    means.update(alone)
    assert means.means()["x"].tolist() == pytest.approx([0.0, 1.0, 200.0 / 101.0])


def test_a_checkpoint_holds_them(tmp_path: Path) -> None:
    means, again, empty = RunningMeans(), RunningMeans(), RunningMeans()
    means.observe(sums(3.0, 2.0))
    means.update(alone)
    means.save(tmp_path)
    again.load(tmp_path, torch.device("cpu"))
    assert again.means()["x"].equal(means.means()["x"])
    empty.save(tmp_path)  # an objective without sums
    again.load(tmp_path, torch.device("cpu"))
    assert again.means() == {}
