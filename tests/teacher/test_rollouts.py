"""Rollouts: units fixed in advance, evidence of the same pass, and the same cache after a kill."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tdistill.core import top_p_sets
from tdistill.errors import CacheError, InvalidValueError
from tdistill.evidence.collator import outside_set
from tdistill.evidence.rows import Row
from tdistill.models.generation import row_uniforms, seed_of
from tdistill.teacher import rollouts
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.rollouts import Unit, collect_rollouts, plan_key, plan_units, sample_unit
from tdistill.teacher.source import LiveTeacher
from teaching import (
    CAPTURE,
    END,
    PROMPTS,
    assert_close,
    contents,
    roll,
    sample_everything,
    settings,
    teacher,
)
from tiny import tiny_lm


def actions(rows: list[Row]) -> torch.Tensor:
    return torch.tensor([token for row in rows for token in row.response_ids])


def test_units_hold_every_prompt_n_times_similar_lengths_together():
    units = plan_units(PROMPTS, settings())
    assert [len(unit.prompts) for unit in units] == [4, 4, 4, 3]
    assert [unit.first for unit in units] == [0, 4, 8, 12]
    assert [len(u.prompts) for u in plan_units(PROMPTS, settings(batches_per_shard=2))] == [8, 7]
    pairs = [pair for u in units for pair in zip(u.prompts, u.samples, strict=True)]
    assert sorted(pairs) == sorted((prompt, i) for prompt in PROMPTS for i in range(3))
    lengths = [len(prompt) for prompt, _ in pairs]
    assert lengths == sorted(lengths)


def test_units_and_seeds_are_fixed_in_advance():
    units = plan_units(PROMPTS, settings())
    assert units == plan_units(list(PROMPTS), settings())
    # Caches of earlier runs are continued with the same responses only while these numbers stay.
    assert float(row_uniforms([seed_of(5, 0)])(torch.tensor([0]))) == 0.26173220206872294
    assert units != plan_units(PROMPTS, settings(seed=6))


def test_the_key_names_prompts_and_settings():
    key = plan_key(PROMPTS, settings())
    assert key == plan_key(list(PROMPTS), settings())
    others = [
        plan_key(PROMPTS[1:], settings()),
        plan_key(PROMPTS[::-1], settings()),
        *(plan_key(PROMPTS, settings(**{name: 7})) for name in ("n", "seed", "max_new_tokens")),
        plan_key(PROMPTS, settings(sampling_top_p=0.7)),
    ]
    assert len({key, *others}) == len(others) + 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_evidence_of_the_sampling_pass_is_that_of_a_forward_pass(family: str, tmp_path: Path):
    cache = roll(tmp_path, lm=teacher(family))
    rows = cache.rows()
    assert len(rows) == 15
    assert_close(cache.evidence(rows), LiveTeacher(teacher(family), CAPTURE).evidence(rows))


def test_rows_are_the_responses_with_their_ends(tmp_path: Path):
    cache = roll(tmp_path, n=8)
    rows = cache.rows(source="rollout")
    assert sorted(row.prompt_ids for row in rows) == sorted(PROMPTS * 8)
    ends = {row.ended for row in rows}
    assert ends == {True, False}
    for row in rows:
        assert row.ended == (row.response_ids[-1] == END)
        assert END not in row.response_ids[:-1]
        assert row.ended or len(row.response_ids) == 8
    assert {len(cache.rows(source=f"rollout:{i}")) for i in range(8)} == {5}


@pytest.mark.parametrize("cap", [None, 3])
@pytest.mark.parametrize("sampling", [0.3, 0.8, 0.9])
def test_no_action_is_outside_the_set_it_was_sampled_from(
    sampling: float, cap: int | None, tmp_path: Path
):
    capture = CaptureConfig(0.9, cap)
    cache = roll(tmp_path, sampling_top_p=sampling, capture=capture, n=10, batch_size=25)
    rows = cache.rows()
    sets = cache.evidence(rows, set_top_p=sampling).sets
    assert not outside_set(sets, actions(rows)).any()
    if cap is not None and sampling == 0.9:
        assert (sets.sizes == cap).float().mean() > 0.5  # the cap binds


def test_sampling_from_more_than_is_captured(tmp_path: Path):
    narrow, wide = CaptureConfig(0.4, None), CaptureConfig(0.95, None)
    cache = roll(tmp_path, sampling_top_p=0.95, capture=narrow, n=10, batch_size=25)
    rows = cache.rows()
    found, live = cache.evidence(rows), LiveTeacher(teacher(), wide).evidence(rows)
    outside = outside_set(found.sets, actions(rows))
    assert 0.2 < outside.float().mean() < 0.8
    assert not outside_set(live.sets, actions(rows)).any()
    torch.testing.assert_close(
        found.action_log_prob, live.action_log_prob, rtol=2.0**-10, atol=1e-5
    )
    assert torch.equal(found.sets.ids, LiveTeacher(teacher(), narrow).evidence(rows).sets.ids)


def test_a_capture_by_gain_samples_from_the_whole_nucleus(tmp_path: Path):
    small = CaptureConfig(0.9, None, min_gain=0.2)
    cache = roll(tmp_path / "small", capture=small, n=10, batch_size=25)
    whole = roll(tmp_path / "whole", capture=CaptureConfig(0.9, None), n=10, batch_size=25)
    same = [a == b for a, b in zip(cache.rows(), whole.rows(), strict=True)]
    assert sum(same) / len(same) > 0.9  # rounding moves the end of a nucleus here and there
    assert cache.manifest.identity.min_gain == 0.2
    found, live = cache.evidence(cache.rows()), LiveTeacher(teacher(), small)
    assert torch.equal(found.sets.ids, live.evidence(cache.rows()).sets.ids)
    assert outside_set(found.sets, actions(cache.rows())).any()
    with pytest.raises(CacheError, match=r"min_gain: expected None, found 0\.2"):
        CacheWriter(tmp_path / "small", identity_of(teacher(), CaptureConfig(0.9, None)))


@pytest.mark.parametrize("captured", [0.9, 0.5])
def test_responses_follow_the_projected_teacher(captured: float):
    """Frequencies against proj_p (2.3), p = 0.8, for both sides of the captured mass."""
    count = 4000
    config = settings(n=count, batch_size=count, max_new_tokens=1, capture=CaptureConfig(captured))
    (unit,) = plan_units([(9,)], config)
    drawn = torch.tensor([r.row.response_ids[0] for r in sample_unit(teacher(), unit, config)])
    with torch.no_grad():
        log_probs = teacher().model(torch.tensor([[9]])).logits[0].log_softmax(-1)
    ids, kept = top_p_sets(log_probs, 0.8).row(0)
    expected = count * kept.double().softmax(0)
    observed = drawn.bincount(minlength=64)
    assert observed[ids].sum() == count
    statistic = ((observed[ids] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(ids) - 1) / 2, dtype=torch.float64)
    assert len(ids) > 3
    assert torch.special.gammaincc(freedom, statistic / 2) > 0.01


def test_a_response_does_not_depend_on_when_the_others_end():
    """The same row and seed among other prompts, which end at other steps."""
    config = settings(max_new_tokens=24, sampling_top_p=1.0, capture=CaptureConfig(1.0, None))
    found, differ = set(), 0
    for seed in range(8):
        units = [
            Unit((*others, (3, 4)), (0,) * 7, 0, seed)
            for others in (tuple((i,) for i in range(5, 11)), tuple((i, 2) for i in range(30, 36)))
        ]
        first, second = (sample_unit(teacher(), u, config) for u in units)
        lengths = [[len(r.row.response_ids) for r in unit[:-1]] for unit in (first, second)]
        differ += lengths[0] != lengths[1]
        assert first[-1].row == second[-1].row
        found.add(first[-1].row)
    assert differ > 4
    assert max(len(row.response_ids) for row in found) > 8


def test_samples_of_a_prompt_differ(tmp_path: Path):
    rows = roll(tmp_path, [PROMPTS[0]], n=8).rows()
    assert len({row.response_ids for row in rows}) > 4


def test_files_and_batches_change_no_response(tmp_path: Path):
    one, all_in_one = roll(tmp_path / "1"), roll(tmp_path / "9", batches_per_shard=9)
    assert len(one.manifest.shards) == 4
    assert len(all_in_one.manifest.shards) == 1
    single = roll(tmp_path / "s", batch_size=1, batches_per_shard=99)
    assert one.rows() == all_in_one.rows() == single.rows()
    assert_close(single.evidence(single.rows()), all_in_one.evidence(all_in_one.rows()))


class Interrupted(Exception):
    """Raised in the middle of the work."""


@pytest.mark.parametrize("done", [0, 1, 3])
def test_interrupted_and_resumed_is_the_same_cache(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    roll(tmp_path / "straight")
    sampled: list[int] = []

    def sample(*args: Any) -> Any:
        if len(sampled) == done:
            raise Interrupted
        sampled.append(args[1].first)
        return sample_unit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "sample_unit", sample)
        with pytest.raises(Interrupted):
            roll(tmp_path / "broken")
    done = 99  # from here on nothing is interrupted
    first, sampled = sampled, []
    monkeypatch.setattr(rollouts, "sample_unit", sample)
    roll(tmp_path / "broken")
    assert first + sampled == [unit.first for unit in plan_units(PROMPTS, settings())]
    assert contents(tmp_path / "broken") == contents(tmp_path / "straight")
    sampled.clear()
    roll(tmp_path / "broken")
    assert sampled == []


SHARDS = 20
# What takes long to import; the test modules themselves are not on the path of that process.
PRELOAD = ["tdistill.teacher.rollouts", "transformers.models.llama.modeling_llama", "tokenizers"]


def shards_of(folder: Path) -> int:
    return len(list(folder.glob("*.arrow")))


@pytest.mark.slow  # run/test_seeds.py kills a whole run
def test_killed_at_random_moments_and_resumed_is_the_same_cache(tmp_path: Path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOAD)

    def start(folder: Path) -> Any:
        process = processes.Process(target=sample_everything, args=(str(folder),))
        process.start()
        return process

    straight = start(tmp_path / "straight")
    straight.join(120)
    assert straight.exitcode == 0
    assert shards_of(tmp_path / "straight") == SHARDS
    chance, killed, broken = random.Random(3), 0, tmp_path / "broken"
    for _ in range(6):
        process, before = start(broken), shards_of(broken) if broken.exists() else 0
        while shards_of(broken) <= before and process.is_alive():
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.05))
        process.kill()
        process.join(120)
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 3
    last = start(broken)
    last.join(120)
    assert last.exitcode == 0
    assert contents(broken) == contents(tmp_path / "straight")


def test_further_prompts_are_appended_and_old_rows_kept(tmp_path: Path):
    old = roll(tmp_path)
    before, rows = contents(tmp_path), old.rows()
    evidence = old.evidence(rows)
    new = roll(tmp_path, [(30, 31), (32,)])
    after = contents(tmp_path)
    assert {k: after[k] for k in before if k.endswith(".arrow")} == {
        k: v for k, v in before.items() if k.endswith(".arrow")
    }
    assert len(new) == 15 + 6
    assert {row for row in new.rows()} >= set(rows)
    assert {row.prompt_ids for row in new.rows()} == {*PROMPTS, (30, 31), (32,)}
    assert_close(new.evidence(rows), evidence)
    key = plan_key([(30, 31), (32,)], settings())
    assert {row.prompt_ids for row in new.rows(shard=f"rollouts-{key}")} == {(30, 31), (32,)}


def test_a_padded_teacher_samples_only_its_tokens(tmp_path: Path):
    lm = tiny_lm(seed=1, vocab_size=72)
    lm.model.get_output_embeddings().weight.data[64:] *= 100.0  # pyright: ignore
    cache = roll(tmp_path, lm=lm, n=8)
    assert cache.manifest.identity.vocabulary_size == 64
    assert actions(cache.rows()).max() < 64
    assert cache.evidence(cache.rows()).sets.ids.max() < 64


def test_shards_are_announced_one_by_one(tmp_path: Path):
    config = settings(batches_per_shard=2)
    with CacheWriter(tmp_path, identity_of(teacher(), CAPTURE)) as writer:
        progress = collect_rollouts(teacher(), PROMPTS, config, writer)
        assert shards_of(tmp_path) == 0
        assert next(progress) == 8
        assert shards_of(tmp_path) == 1
        assert list(progress) == [7]


@pytest.mark.parametrize("name", ["n", "max_new_tokens", "batch_size", "batches_per_shard"])
def test_impossible_settings_are_refused(name: str):
    wrong: dict[str, Any] = {name: 0}
    with pytest.raises(InvalidValueError, match=f"{name}: expected at least 1, found 0"):
        RolloutConfig(**wrong)
    with pytest.raises(InvalidValueError, match="sampling_top_p"):
        RolloutConfig(sampling_top_p=0.0)
