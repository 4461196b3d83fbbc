"""Batches with rows of the student and of the ground truth in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interrupting import History, assert_goes_on
from tdistill.errors import InvalidValueError
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import pack
from tdistill.models.scores import step_scores
from tdistill.teacher.source import LiveTeacher
from tdistill.training.config import ReplayConfig, TrainConfig
from tdistill.training.mixing import EvidenceMix, StudentSampler
from tdistill.training.objectives import KD, SFT, BellmanDistill
from tdistill.training.train import train_student
from tdistill.training.trainer import DistillTrainer
from tiny import VOCABULARY, tokenizer
from world import (
    CAPTURE,
    END,
    cached,
    inside_rows,
    live,
    mixed_rows,
    student,
    teacher,
)

REPLAY = ReplayConfig(
    refresh_every=2, rows_per_refresh=6, max_age=5, max_new_tokens=6, batch_size=4
)
HALF = BellmanDistill(student_share=0.5)


def learner(**options: Any) -> LanguageModel:
    return LanguageModel(student(**options), tokenizer(), "student")


def sampler(teacher_mix: float = 0.0, **changes: Any) -> StudentSampler:
    return StudentSampler(learner(), live(), replace(REPLAY, **changes), teacher_mix)


def mix(objective: Any, **options: Any) -> EvidenceMix:
    settings: dict[str, Any] = {
        "steps": 11,
        "rows": inside_rows(),
        "sampler": sampler(objective.teacher_mix),
        "references": [replace(row, source="reference") for row in mixed_rows()],
        "config": REPLAY,
        "seed": 0,
    }
    return EvidenceMix(objective, **{**settings, **options})


def log_probs(lm: LanguageModel, rows: list[Row]) -> torch.Tensor:
    """Of every action, over the whole vocabulary."""
    scores = step_scores(lm.model, pack(rows, pad_id=END), vocabulary_size=VOCABULARY)
    actions = torch.tensor([a for row in rows for a in row.response_ids])
    return scores.rows(0, len(actions)).log_softmax(-1)[torch.arange(len(actions)), actions]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_behaviour_is_the_log_probability_of_the_policy_that_was_sampled(weight: float) -> None:
    made = sampler(weight).sample([r.prompt_ids for r in inside_rows()], seed=3, update=7)
    rows = [entry.row for entry in made]
    assert {row.source for row in rows} == {"mixed" if weight else "student"}
    assert {entry.born for entry in made} == {7}
    own, theirs = log_probs(learner(), rows).exp(), log_probs(teacher(), rows).exp()
    expected = ((1 - weight) * own + weight * theirs).log()
    found = torch.tensor([b for row in rows for b in row.behaviour])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_low_temperature_samples_likelier_responses_up_to_the_length_limit() -> None:
    cold = sampler(temperature=0.25).sample([(5, 6)] * 30, seed=1, update=0)
    warm = sampler(temperature=4.0).sample([(5, 6)] * 30, seed=1, update=0)
    own = [log_probs(learner(), [e.row for e in made]).mean() for made in (cold, warm)]
    assert own[0] > own[1] + 0.5
    assert max(len(e.row.response_ids) for e in [*cold, *warm]) == REPLAY.max_new_tokens
    assert all(e.row.ended == (e.row.response_ids[-1] == END) for e in [*cold, *warm])


def test_the_evidence_is_what_the_live_teacher_says() -> None:
    made = sampler().sample([(5, 6), (7, 8, 9), (4,)], seed=1, update=0)
    for entry in made:
        expected = live().evidence([entry.row])
        assert entry.evidence.sets.ids.equal(expected.sets.ids)
        torch.testing.assert_close(entry.evidence.log_normaliser, expected.log_normaliser)


def test_sampling_leaves_the_network_as_it_was_and_draws_no_global_numbers() -> None:
    one = sampler()
    one.student.model.train()
    before = torch.get_rng_state()
    one.sample([(5, 6)], seed=1, update=0)
    assert one.student.model.training
    assert before.equal(torch.get_rng_state())


@pytest.mark.parametrize(("share", "count"), [(0.5, 4), (0.3, 5), (1.0, 3), (0.07, 8)])
def test_the_share_is_met_over_all_batches(share: float, count: int) -> None:
    mixed = mix(BellmanDistill(student_share=share))
    items = list(enumerate(inside_rows(count)))
    found = 0
    for update in range(12):
        mixed.refresh(update)
        batch = mixed.mix(items, update=update)
        assert len(batch) == count
        assert [index for index, _ in batch] == [index for index, _ in items]
        own = [row for _, row in batch if row.source == "student"]
        assert [row for _, row in batch[: count - len(own)]] == [
            row for _, row in items[: count - len(own)]
        ]
        found += len(own)
    assert found == int(share * 12 * count + 1e-9)


def test_a_share_can_change_linearly_to_the_last_update() -> None:
    mixed = mix(BellmanDistill(student_share=0.0, student_share_end=0.8))
    assert [round(mixed.student_share(u), 2) for u in (0, 5, 10, 99)] == [0.0, 0.4, 0.8, 0.8]
    mixed.refresh(0)
    assert len(mixed.buffer) == 0  # nobody would use them
    mixed.refresh(2)
    assert len(mixed.buffer) == REPLAY.rows_per_refresh


def test_references_are_mixed_in_too() -> None:
    mixed = mix(BellmanDistill(student_share=0.25, reference_share=0.25))
    mixed.refresh(0)
    batch = mixed.mix(list(enumerate(inside_rows(8))), update=0)
    assert [row.source for _, row in batch] == ["teacher"] * 4 + ["reference"] * 2 + ["student"] * 2


def test_responses_are_made_only_when_due() -> None:
    mixed = mix(HALF)
    sizes = []
    for update in range(5):
        mixed.refresh(update)
        sizes.append((len(mixed.buffer), max(e.born for e in mixed.buffer.entries)))
    assert sizes == [(6, 0), (6, 0), (12, 2), (12, 2), (18, 4)]


def run(folder: Path, objective: Any, **options: Any) -> tuple[LanguageModel, Any]:
    """A run of seven updates; a checkpoint after three."""
    rows = [*inside_rows(), *mixed_rows()]
    changes = options.pop("changes", {})
    config = TrainConfig(
        steps=7,
        batch_size=8,
        gradient_accumulation=2,
        learning_rate=1e-2,
        warmup_steps=1,
        save_steps=3,
        replay=REPLAY,
        chunk_size=16,
        **changes,
    )
    folder.mkdir(exist_ok=True)
    source = cached(folder / "cache", rows) if not (folder / "cache").exists() else None
    settings: dict[str, Any] = {
        "checkpoints": folder / "checkpoints",
        "vocabulary_size": VOCABULARY,
        "source": source or live(),
        "live_teacher": LiveTeacher(teacher(), CAPTURE),
    }
    return train_student(learner(), objective, rows[:16], config, **{**settings, **options})


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_responses_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path) -> tuple[LanguageModel, History]:
        return run(folder, HALF)

    assert_goes_on(train, tmp_path, monkeypatch, stop=5)


def test_every_metric_is_split_by_who_wrote_the_row_and_the_buffer_reports(tmp_path: Path) -> None:
    references = [replace(row, source="reference") for row in mixed_rows()]
    objective = replace(HALF, reference_share=0.25)
    _, history = run(tmp_path, objective, references=references)
    last = history[-1]
    for name in ("step_loss", "set_kl", "implied_reward", "value", "leak"):
        for source in ("teacher", "reference", "student"):
            assert f"{name}.{source}" in last
    assert last["replay_rows"] == 18.0
    assert last["replay_mib"] > 0.0
    assert 0.0 < last["replay_age"] <= REPLAY.max_age
    parts = [last[f"step_loss.{s}"] for s in ("teacher", "reference", "student")]
    assert min(parts) < last["step_loss"] < max(parts)


def test_mixed_batches_are_cut_into_parts_too(tmp_path: Path) -> None:
    objective = replace(HALF, reference_share=0.25)
    references = [replace(row, source="reference") for row in mixed_rows()]
    histories = []
    for budget in (None, 12):
        changes = {"share_prefix": True, "tokens_per_forward": budget}
        folder = tmp_path / str(budget)
        _, history = run(folder, objective, references=references, changes=changes)
        histories.append(history)
    # Later, the student's responses can differ by a token that rounding decides.
    for name, value in histories[0][0].items():
        if name not in {"padding", "tokens_per_second"} and not name.startswith("leak"):
            assert histories[1][0][name] == pytest.approx(value, rel=1e-4), name


def test_the_students_rows_change_what_is_learnt(tmp_path: Path) -> None:
    with_own, _ = run(tmp_path / "a", HALF)
    without, history = run(tmp_path / "b", replace(HALF, student_share=0.0))
    assert not all(
        one.equal(two)
        for one, two in zip(with_own.model.parameters(), without.model.parameters(), strict=True)
    )
    assert not {"replay_rows", "sampled_tokens"} & set(history[-1])


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (HALF, {"live_teacher": None}, "student_share = 0.5 needs the teacher in memory"),
        (SFT(student_share=0.5), {"source": None}, "needs the teacher's sets"),
        (KD(reference_share=0.5), {}, "reference_share = 0.5 needs ground-truth"),
    ],
)
def test_missing_evidence_is_refused_before_any_work(
    objective: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        run(tmp_path, objective, **options)


@pytest.mark.parametrize("kind", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_weights_that_are_sharded_cannot_be_sampled_from(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create: Any = DistillTrainer.create_accelerator_and_postprocess

    def sharded(self: Any) -> None:
        create(self)
        setattr(self, kind, True)

    monkeypatch.setattr(DistillTrainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(InvalidValueError, match="expected the student's whole weights"):
        run(tmp_path, HALF)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_share": 1.2}, r"student_share: expected a value in \[0, 1\]"),
        ({"teacher_mix": -0.1}, "teacher_mix: expected"),
        ({"student_share": 0.7, "reference_share": 0.4}, "expected at most 1"),
        ({"student_share_end": 0.7, "reference_share": 0.4}, "expected at most 1"),
    ],
)
def test_shares_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        BellmanDistill(**changes)
