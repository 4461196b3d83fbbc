"""Training on two processes is training on one, whatever is trained and wherever it is resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from updates import CONFIG, OBJECTIVES, VARIANTS, Weights, trained

from launching import TWO, launched
from world import student

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).parent / "updates.py"
RESUMED = ("sampled", "target", "online", "critic")


def on_processes(count: int, folder: Path, **wanted: Any) -> dict[str, Weights]:
    """Weights by the name of the objective, after training in processes of their own."""
    folder.mkdir(exist_ok=True)
    out = folder / f"on-{count}.pt"
    launched([DRIVER, folder, out, json.dumps(wanted)], TWO if count == 2 else None)
    return torch.load(out, weights_only=True)


def assert_same(found: Weights, expected: Weights, name: str, within: float = 1e-6) -> None:
    assert found.keys() == expected.keys(), name
    for key, weight in expected.items():
        distance = (found[key].double() - weight.double()).abs().max()
        # An update moves a critic's weights by up to 1, of which Adam makes rounding visible.
        limit = 1e-4 * weight.abs().max() if key.startswith("critic.") else within
        assert distance <= limit, f"{name}: {key} differs by {distance:.1e}"
    start = student().state_dict()
    moved = max((expected[key] - start[key]).abs().max() for key in start)
    assert moved > 1e-3, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """Every objective in this one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: trained(name, folder / name) for name in OBJECTIVES}


def test_two_processes_are_one(alone: dict[str, Weights], tmp_path: Path) -> None:
    together = on_processes(2, tmp_path, names=list(OBJECTIVES))
    for name in OBJECTIVES:
        assert_same(together[name], alone[name], name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_of_one_row_are_the_batch(
    name: str, alone: dict[str, Weights], tmp_path: Path
) -> None:
    parts = 4 if name == "likelier" else 8  # half of its rows have no eight parts
    found = trained(name, tmp_path, replace(CONFIG, gradient_accumulation=parts))
    assert_same(found, alone[name], name)


def test_a_run_goes_on_with_another_number_of_processes(
    alone: dict[str, Weights], tmp_path: Path
) -> None:
    wanted: dict[str, Any] = {"names": RESUMED}
    assert on_processes(1, tmp_path, stop=4, **wanted) == {}
    assert on_processes(2, tmp_path, stop=7, **wanted) == {}
    assert (tmp_path / "online/checkpoint-6/rng_state_1.pth").exists()
    found = on_processes(1, tmp_path, **wanted)
    for name in RESUMED:
        assert_same(found[name], alone[name], name)
    assert set(RESUMED) <= set(VARIANTS)
