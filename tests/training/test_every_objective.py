"""What must hold for every objective of the union, those to come included."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import pytest

from tdistill import strict
from tdistill.models.language_model import LanguageModel
from tdistill.recipe import Recipe
from tdistill.teacher.source import LiveTeacher
from tdistill.training.config import ReplayConfig, TrainConfig
from tdistill.training.objectives import AnyObjective, BellmanDistill, Objective
from tdistill.training.train import train_student
from tiny import VOCABULARY, tokenizer
from world import CAPTURE, inside_rows, live, student, teacher

CLASSES: tuple[Any, ...] = get_args(AnyObjective)
REPLAY = ReplayConfig(refresh_every=4, rows_per_refresh=12, max_age=8, max_new_tokens=6)
GOLDEN = Path(__file__).parent / "golden_curve.json"


def train(folder: Path, objective: Objective, *, steps: int = 40) -> list[dict[str, float]]:
    config = TrainConfig(
        steps=steps,
        batch_size=8,
        learning_rate=5e-3,
        warmup_steps=1,
        scheduler="constant",
        save_steps=1000,
        replay=REPLAY,
    )
    start = LanguageModel(student(), tokenizer(), "student")
    capture = replace(CAPTURE, tail_samples=8 if objective.needs_tails else 0)
    _, history = train_student(
        start,
        objective,
        list(inside_rows(16)),
        config,
        checkpoints=folder,
        vocabulary_size=VOCABULARY,
        source=live(capture),
        live_teacher=LiveTeacher(teacher(), capture),
    )
    return history


# These share the code of others, and have their exact optimum pinned elsewhere: slow cases.
ALIKE = {"reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation", "seqkd", "iq_learn"}
ALIKE |= {"bounded_iq", "path_consistency", "csil"}


@pytest.mark.parametrize(
    "cls",
    [pytest.param(c, marks=[pytest.mark.slow] * (c.name in ALIKE)) for c in CLASSES],
    ids=lambda cls: cls.name,
)
def test_a_short_training_run_lowers_what_it_minimises(cls: Any, tmp_path: Path) -> None:
    # Ends and cuts of 200 nats would hide in noise what forty updates do to LS-IQ.
    objective = cls(absorbing=False) if cls.name == "ls_iq" else cls()
    history = train(tmp_path, objective)
    assert all(math.isfinite(v) for entry in history for v in entry.values())
    # The value of a policy gradient's surrogate means nothing; what it descends is logged beside.
    name = "reverse_kl" if objective.name == "minillm" else "step_loss"
    first, last = (mean(e[name] for e in part) for part in (history[:4], history[-4:]))
    assert last < first - 0.05 * abs(first)
    assert history[-1]["grad_norm"] > 0.0
    assert ("replay_rows" in history[-1]) == objective.uses_student_rows


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)
def test_a_recipe_can_name_it_and_says_all_of_it(cls: Any) -> None:
    settings: dict[str, Any] = {"teacher": {"path": "t"}, "student": {"layers": 2}}
    settings |= {"distilled": "mine", "rollouts": {"capture": {"tail_samples": 8}}}
    recipe = strict.structure(Recipe, settings | {"objectives": {"mine": {"objective": cls.name}}})
    assert recipe.objectives["mine"] == cls()
    assert strict.structure(Recipe, strict.dump(recipe)) == recipe


def test_the_curve_of_the_default_objective_is_the_recorded_one(tmp_path: Path) -> None:
    """To record it anew after an intended change, delete the file and run the test twice."""
    history = train(tmp_path, BellmanDistill(), steps=12)
    names = ("loss", "linear", "nonlinear", "implied_reward", "value", "set_kl", "leak")
    found = {name: [round(entry[name], 5) for entry in history] for name in names}
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} was not there and has been recorded: look at it, commit it")
    expected = json.loads(GOLDEN.read_text())
    assert found.keys() == expected.keys()
    for name in names:
        assert found[name] == pytest.approx(expected[name], rel=2e-3, abs=2e-3), name
