"""Rows that are left out because the student finds others likelier."""

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
from tdistill.models.likelihood import response_log_probs
from tdistill.models.scores import step_scores
from tdistill.training import train as train_module
from tdistill.training.config import TrainConfig
from tdistill.training.likelihood_filter import LikelihoodFilter, largest_share
from tdistill.training.mixing import EvidenceMix
from tdistill.training.objectives import KD, Objective, SeqKD
from tdistill.training.train import train_student
from tiny import VOCABULARY, tokenizer
from world import END, inside_rows, live, mixed_rows, student

CONFIG = TrainConfig(
    steps=4, batch_size=8, learning_rate=1e-2, warmup_steps=1, save_steps=2, chunk_size=4
)
START, UPDATE = SeqKD(keep_share=0.5), SeqKD(keep_share=0.5, keep_when="update")
ROWS = [Row(p, r.response_ids, r.ended) for p in ((4, 5), (6,), (7, 8, 9)) for r in inside_rows(4)]


def learner(**options: Any) -> LanguageModel:
    return LanguageModel(student(**options), tokenizer(), "student")


@torch.no_grad()
def mean_log_probs(row: Row, lm: LanguageModel | None = None) -> float:
    """Of a row alone, over the whole vocabulary."""
    model = (lm or learner()).model
    scores = step_scores(model, pack([row], pad_id=END), vocabulary_size=VOCABULARY, head="full")
    log_probs = scores.rows(0, len(scores)).log_softmax(-1)
    return float(log_probs.gather(1, torch.tensor(row.response_ids)[:, None]).mean())


def train(folder: Path, objective: Objective, config: TrainConfig = CONFIG) -> tuple[Any, Any]:
    return train_student(
        learner(),
        objective,
        ROWS,
        config,
        checkpoints=folder,
        vocabulary_size=VOCABULARY,
        source=live(),
    )


@pytest.mark.parametrize(
    ("share", "kept"),
    [(1.0, [0, 1, 2, 3, 4]), (0.7, [0, 1, 2, 3, 4]), (0.5, [0, 2, 3]), (0.01, [2, 3])],
)
def test_the_largest_of_each_group_are_kept_rounded_up(share: float, kept: list[int]) -> None:
    scores, groups = [-1.0, -3.0, 5.0, -0.5, -2.0], [0, 1, 1, 0, 0]
    assert largest_share(scores, groups, share) == kept


def test_a_share_is_not_rounded_up_for_a_rounding_error_and_the_first_of_equals_stay() -> None:
    assert largest_share([1.0] * 10, [0] * 10, 0.7) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_responses_are_scored_over_the_vocabulary_in_any_order(batch_size: int) -> None:
    rows = [*mixed_rows(), *ROWS]
    found = response_log_probs(learner(), rows, vocabulary_size=VOCABULARY, batch_size=batch_size)
    expected = [mean_log_probs(row) * len(row.response_ids) for row in rows]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_rows_are_ranked_by_their_mean_a_token_with_dropout_off() -> None:
    lm, modes = learner(), list[bool]()
    lm.model.train()
    lm.model.base_model.register_forward_pre_hook(lambda *_: modes.append(lm.model.training))
    rows = [r for r in ROWS if r.prompt_ids == (6,)]
    kept = LikelihoodFilter(lm, 0.5, VOCABULARY, 3).best(rows, groups=[0] * 4)
    assert set(modes) == {False} and lm.model.training
    order = sorted(range(4), key=lambda i: -mean_log_probs(rows[i]))
    assert kept == sorted(order[:2])
    by_sum = sorted(range(4), key=lambda i: -mean_log_probs(rows[i]) * len(rows[i].response_ids))
    assert kept != sorted(by_sum[:2])


def test_start_leaves_the_likelier_half_of_each_prompts_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Row]] = []
    dataset: Any = train_module.RowDataset
    monkeypatch.setattr(train_module, "RowDataset", lambda r: seen.append(list(r)) or dataset(r))
    train(tmp_path, START, replace(CONFIG, steps=1))
    expected = []
    for prompt in ((4, 5), (6,), (7, 8, 9)):
        own = [row for row in ROWS if row.prompt_ids == prompt]
        best = sorted(own, key=lambda row: -mean_log_probs(row))[:2]
        expected += [row for row in own if row in best]
    assert seen == [expected]


def test_update_trains_on_the_mean_over_the_likelier_rows_of_the_update(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=1, batch_size=12)
    trained, history = train(tmp_path, UPDATE, config)  # all rows are in the batch
    best = sorted(ROWS, key=lambda row: -mean_log_probs(row))[:6]
    steps = sum(len(row.response_ids) for row in best)
    loss = -sum(mean_log_probs(row) * len(row.response_ids) for row in best) / steps
    assert history[0]["loss"] == pytest.approx(loss, rel=1e-4)
    alone, _ = train_student(
        learner(),
        SeqKD(),
        best,
        replace(config, batch_size=6),
        checkpoints=tmp_path / "alone",
        vocabulary_size=VOCABULARY,
        source=live(),
    )
    for one, two in zip(trained.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_micro_batches_share_the_likelier_rows_of_their_update(tmp_path: Path) -> None:
    histories = []
    for parts in (1, 4):
        _, history = train(
            tmp_path / str(parts), UPDATE, replace(CONFIG, gradient_accumulation=parts)
        )
        histories.append([entry["step_loss"] for entry in history])
    assert histories[0] == pytest.approx(histories[1], rel=1e-3)


def test_the_student_is_asked_anew_at_every_update() -> None:
    lm = learner()
    options: Any = {"sampler": None, "references": (), "config": CONFIG.replay, "seed": 0}
    likelier = LikelihoodFilter(lm, 0.25, VOCABULARY, 4)
    mixed = EvidenceMix(UPDATE, steps=4, rows=ROWS, likelier=likelier, **options)
    drawn = list(enumerate(ROWS))
    kept = list(mixed.keep(drawn))
    assert len(kept) == 3
    other = learner(seed=5)
    lm.model.load_state_dict(other.model.state_dict())
    best = sorted(range(12), key=lambda i: -mean_log_probs(ROWS[i], other))[:3]
    again = list(mixed.keep(drawn))
    assert again == [(i, ROWS[i]) for i in sorted(best)]
    assert again != kept


@pytest.mark.parametrize("objective", [START, UPDATE], ids=lambda o: o.keep_when)
def test_a_killed_run_goes_on_with_the_same_rows(
    objective: Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path) -> tuple[LanguageModel, History]:
        return train(folder, objective)

    assert_goes_on(run, tmp_path, monkeypatch, stop=3)


@pytest.mark.parametrize(
    ("objective", "parts", "message"),
    [
        (KD(keep_share=0.9), 1, "a share that leaves out some response .* keeps all 12"),
        (replace(UPDATE, keep_share=0.4), 4, "at least one row of the 2 of each micro-batch and"),
    ],
)
def test_a_filter_that_cannot_do_its_work_is_refused(
    objective: Objective, parts: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        train(tmp_path, objective, replace(CONFIG, gradient_accumulation=parts))


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(InvalidValueError, match=r"keep_share: expected a value in \(0, 1\]"):
        KD(keep_share=share)
