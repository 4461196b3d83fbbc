"""Student rows that continue training responses from within, a few tokens each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interrupting import History, assert_goes_on
from tdistill.errors import InvalidValueError
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.training.config import ReplayConfig, TrainConfig
from tdistill.training.mixing import EvidenceMix, StudentSampler
from tdistill.training.objectives import GKD, BellmanDistill, MiniLLM, ReverseKL, SoftTD
from tdistill.training.replay import Entry
from tdistill.training.train import train_student
from tiny import VOCABULARY, tokenizer
from world import END, inside_rows, live, student

REPLAY = ReplayConfig(
    refresh_every=2, rows_per_refresh=6, max_age=5, max_new_tokens=6, batch_size=4, branch_tokens=3
)
HALF = ReverseKL(student_share=0.5)
# A prompt with two responses, one of which is longer than the student's whole responses.
ROWS = [
    Row((5, 6), (7, 8, 9, 10, 11, 12, 13, 14), ended=False),
    Row((5, 6), (17, 18, END), ended=True),
    Row((20,), (21,), ended=False),
]


class Asked:
    """Stands for a sampler; takes down what it is asked for."""

    def __init__(self) -> None:
        self.branches: list[tuple[tuple[int, ...], int]] = []

    def sample(self, prompts: Any, *, limits: Any, **keywords: Any) -> list[Entry]:
        self.branches += zip(prompts, limits, strict=True)
        assert [len(p) for p in prompts] == sorted(len(p) for p in prompts)
        return []


def learner() -> LanguageModel:
    return LanguageModel(student(), tokenizer(), "student")


def mix(sampler: Any, rows: Sequence[Row], config: ReplayConfig, seed: int = 0) -> EvidenceMix:
    options: Any = {"steps": 9, "rows": rows, "sampler": sampler, "references": ()}
    return EvidenceMix(HALF, config=config, seed=seed, **options)


def branches(seed: int, updates: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
    asked = Asked()
    config = replace(REPLAY, refresh_every=1, rows_per_refresh=len(ROWS))
    mixed = mix(asked, ROWS, config, seed)
    for update in updates:
        mixed.refresh(update)
    return asked.branches


def test_every_row_and_every_place_in_it_is_as_likely_as_any_other() -> None:
    rounds = 2400
    drawn = Counter(branches(0, range(rounds)))
    for row in ROWS:
        length = len(row.response_ids)
        # Of the bare prompt (5, 6) either row may be meant, with limits of their own.
        for place in range(1, length):
            state = row.prompt_ids + row.response_ids[:place]
            limit = min(3, max(length, 6) - place)
            assert drawn[state, limit] == pytest.approx(rounds / length, rel=0.2)
    assert drawn[(5, 6), 3] == pytest.approx(rounds / 8 + rounds / 3, rel=0.1)
    assert drawn[(20,), 3] == rounds
    assert len(drawn) == 1 + 7 + 2 + 1
    assert sum(drawn.values()) == 3 * rounds


def test_no_branch_outgrows_its_row_or_a_whole_response() -> None:
    limits = dict(branches(0, range(200)))
    full = (5, 6, 7, 8, 9, 10, 11, 12, 13)
    assert [limits[full[:n]] for n in (7, 8, 9)] == [3, 2, 1]  # up to token 8 of its row
    assert limits[5, 6, 17, 18] == 3  # up to 6 tokens


def test_the_draws_depend_on_the_seed_and_the_update_alone() -> None:
    assert branches(0, [0, 1, 2])[6:] == branches(0, [2])
    assert branches(0, [2]) != branches(1, [2])
    assert branches(0, [2]) != branches(0, [3])


def test_branches_go_on_from_within_rows_until_they_end_or_are_cut() -> None:
    rows = inside_rows()
    config = replace(REPLAY, refresh_every=1, rows_per_refresh=40, capacity=4000, max_age=50)
    mixed = mix(StudentSampler(learner(), live(), config, 0.0), rows, config)
    for update in range(10):
        mixed.refresh(update)
    states = {r.prompt_ids + r.response_ids[:n] for r in rows for n in range(len(r.response_ids))}
    made = [entry.row for entry in mixed.buffer.entries]
    assert len(made) == 400
    assert {row.prompt_ids for row in made} <= states
    assert any(row.prompt_ids not in {r.prompt_ids for r in rows} for row in made)
    assert all(row.ended == (row.response_ids[-1] == END) for row in made)
    assert {row.ended for row in made} == {True, False}
    assert max(len(row.response_ids) for row in made) == 3
    assert mixed.buffer.sampled_tokens == sum(len(row.response_ids) for row in made)
    some = mixed.buffer.entries[7]
    assert some.evidence.sets.ids.equal(live().evidence([some.row]).sets.ids)


def run(folder: Path, objective: Any, replay: ReplayConfig = REPLAY) -> tuple[Any, Any]:
    """Seven updates; a checkpoint after three."""
    config = TrainConfig(
        steps=7, batch_size=8, learning_rate=1e-2, warmup_steps=1, save_steps=3, replay=replay
    )
    return train_student(
        learner(),
        objective,
        inside_rows(),
        config,
        checkpoints=folder,
        vocabulary_size=VOCABULARY,
        source=live(),
        live_teacher=live(),
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_branches_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path) -> tuple[LanguageModel, History]:
        return run(folder, HALF)

    history = assert_goes_on(train, tmp_path, monkeypatch, stop=5)
    assert history[-1]["sampled_tokens"] > history[3]["sampled_tokens"] > 0


OBJECTIVES = [GKD(), HALF, SoftTD(student_share=0.5), MiniLLM(), BellmanDistill(student_share=1.0)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
@pytest.mark.parametrize("branch_tokens", [2, None])
def test_objectives_train_on_branches_and_the_log_counts_the_sampled_tokens(
    objective: Any, branch_tokens: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[int, int] = {}
    sample: Any = StudentSampler.sample

    def counted(self: Any, *arguments: Any, update: int, **keywords: Any) -> list[Entry]:
        made = sample(self, *arguments, update=update, **keywords)
        counts[update] = sum(len(entry.row.response_ids) for entry in made)
        return made

    monkeypatch.setattr(StudentSampler, "sample", counted)
    _, history = run(tmp_path, objective, replace(REPLAY, branch_tokens=branch_tokens))
    assert sorted(counts) == [0, 2, 4, 6]
    assert max(counts.values()) <= 6 * (branch_tokens or 6)
    for entry in history:
        assert entry["sampled_tokens"] == sum(n for u, n in counts.items() if u < entry["step"])
        assert entry["grad_norm"] > 0.0
        assert math.isfinite(entry["loss"])


def test_branches_of_no_token_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="branch_tokens: expected at least 1, found 0"):
        ReplayConfig(branch_tokens=0)
