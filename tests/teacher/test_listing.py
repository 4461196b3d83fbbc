"""A teacher behind a server gives the tensors of one at hand; what lacks members is marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from serving import Server, config_of, serving
from tdistill.errors import CacheError, ModelError
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row
from tdistill.models.language_model import tokenizer_fingerprint
from tdistill.teacher.cache.export import write_parquet
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.row_encoder import CachedResponse, encode_rows
from tdistill.teacher.cache.verification import verify_cache
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.inspection import inspect_cache, inspection_text
from tdistill.teacher.listing.server import ServerEngine
from tdistill.teacher.listing.steps import Step, listed_evidence, listed_step
from tdistill.teacher.listing.teacher import ListingTeacher
from tdistill.teacher.rollouts import collect_rollouts
from tdistill.teacher.scoring import collect_scores
from tdistill.teacher.source import LiveTeacher
from teaching import END, PROMPTS, contents, settings, teacher
from tiny import tiny_lm, tokenizer

CAPTURE = CaptureConfig(captured_top_p=0.9, max_set_size=32)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(teacher()) as running:
        yield running


def listing(server: Server, folder: Path, **changes: Any) -> ListingTeacher:
    chosen: dict[str, Any] = {
        "engine": ServerEngine(config_of(server)),
        "capture": CAPTURE,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer()),
        "vocabulary_size": 64,
        "end_ids": (END,),
        "listed": 32,
        "incomplete": "refuse",
        "unfinished": folder / "unfinished",
    }
    return ListingTeacher(**(chosen | changes))


def roll(folder: Path, asked: ListingTeacher, **changes: Any) -> Cache:
    config = settings(capture=asked.capture, **changes)
    with CacheWriter(folder / "cache", asked.identity(asked.capture)) as writer:
        list(collect_rollouts(asked, PROMPTS, config, writer))
    return Cache(folder / "cache")


def assert_as_at_hand(found: Evidence, expected: Evidence) -> None:
    """The same members; log-probabilities may round to neighbouring levels."""
    assert torch.equal(found.sets.ids, expected.sets.ids)
    assert torch.equal(found.sets.offsets, expected.sets.offsets)
    rounding: dict[str, float] = {"rtol": 0, "atol": 2.0**-7}
    torch.testing.assert_close(found.sets.log_probs, expected.sets.log_probs, **rounding)
    torch.testing.assert_close(found.action_log_prob, expected.action_log_prob, **rounding)
    assert found.log_normaliser.isnan().all()


@pytest.mark.parametrize(
    "capture", [CAPTURE, CaptureConfig(0.9, 3), CaptureConfig(0.9, 32, min_gain=0.2)]
)
def test_rollouts_have_the_evidence_of_a_teacher_at_hand(
    server: Server, tmp_path: Path, capture: CaptureConfig
):
    """Prompts of one token, and responses that end at once, among them."""
    cache = roll(tmp_path, listing(server, tmp_path, capture=capture), n=4)
    rows = cache.rows()
    assert len(rows) == 20
    assert min(len(row.prompt_ids) for row in rows) == 1
    assert {row.ended for row in rows} == {True, False}
    assert all(row.ended == (row.response_ids[-1] == END) for row in rows)
    assert_as_at_hand(cache.evidence(rows), LiveTeacher(teacher(), capture).evidence(rows))
    assert verify_cache(cache) == []
    assert not cache.manifest.identity.normaliser
    assert cache.manifest.identity.listed_tokens is None
    assert not list((tmp_path / "unfinished").iterdir())


def test_responses_that_end_at_once(server: Server, tmp_path: Path):
    with torch.no_grad():
        first = teacher().model(torch.tensor([[9]])).logits[0, -1].argmax()
    asked = listing(server, tmp_path, end_ids=(END, int(first)))
    rows = roll(tmp_path, asked, n=8).rows()
    assert any(row.response_ids == (int(first),) and row.ended for row in rows)


def test_numbers_are_drawn_by_place_and_every_setting_is_sent(server: Server, tmp_path: Path):
    roll(tmp_path / "a", listing(server, tmp_path / "a"))
    asked = sorted(body["seed"] for body in server.asked)
    assert len(set(asked)) == 15
    assert all(0 <= seed < 2**31 for seed in asked)
    body = server.asked[0]
    neutral = {"temperature": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1, "top_p": 0.8}
    assert {name: body[name] for name in neutral} == neutral
    assert (body["logprobs"], body["max_tokens"], body["stop_token_ids"]) == (32, 8, [END])
    server.asked.clear()
    roll(tmp_path / "b", listing(server, tmp_path / "b"), batches_per_shard=3)
    assert sorted(body["seed"] for body in server.asked) == asked
    found, again = (Cache(tmp_path / name / "cache") for name in "ab")
    assert found.rows() == again.rows()


def test_given_responses_are_read_with_the_evidence_of_a_teacher_at_hand(
    server: Server, tmp_path: Path
):
    rows = [Row((3, 4), (5, 6, END), True), Row((9,), (33,), False), Row((2, 2, 2), (END,), True)]
    asked = listing(server, tmp_path)
    with CacheWriter(tmp_path / "cache", asked.identity(CAPTURE)) as writer:
        assert list(collect_scores(asked, rows, writer)) == [3]
    cache, live = Cache(tmp_path / "cache"), LiveTeacher(teacher(), CAPTURE)
    assert_as_at_hand(cache.evidence(rows), live.evidence(rows))
    cut = live.evidence(rows, set_top_p=0.5)
    assert_as_at_hand(asked.evidence(rows, set_top_p=0.5), cut)
    assert verify_cache(cache) == []


def test_incomplete_sets_are_refused_by_default(server: Server, tmp_path: Path):
    with pytest.raises(ModelError, match=r"the 2 likeliest tokens to hold captured_top_p = 0.9"):
        roll(tmp_path, listing(server, tmp_path, listed=2))
    assert not list((tmp_path / "cache").glob("*.arrow"))


def test_incomplete_sets_that_are_accepted_are_marked_and_reported(server: Server, tmp_path: Path):
    asked = listing(server, tmp_path, listed=2, incomplete="accept")
    cache = roll(tmp_path, asked)
    rows, live = cache.rows(), LiveTeacher(teacher(), CAPTURE)
    whole = live.evidence(rows)
    lacking = whole.sets.sizes > 2
    marks = [place for shard in cache.shards() for place in shard.incomplete()]
    starts = torch.tensor([0, *(len(row.response_ids) for row in rows)]).cumsum(0).tolist()
    marked = [start + step for start, steps in zip(starts, marks, strict=False) for step in steps]
    assert marked == lacking.nonzero().squeeze(1).tolist()
    assert 10 < len(marked) < len(lacking)
    sets = cache.evidence(rows).sets
    for step in range(len(sets)):
        assert torch.equal(sets.row(step)[0], whole.sets.row(step)[0][:2])
    assert verify_cache(cache) == []
    numbers = inspect_cache(cache)
    assert numbers["incomplete_steps"] == len(marked)
    assert numbers["incomplete_rows"] == sum(map(bool, marks))
    assert (numbers["listed_tokens"], numbers["normaliser"]) == (2, False)
    text = inspection_text(numbers)
    assert f"incomplete     {len(marked)} sets (" in text
    assert "log-normaliser absent" in text
    assert write_parquet(cache, tmp_path / "cache.parquet") == len(rows)


def test_incomplete_sets_are_completed_by_scoring(server: Server, tmp_path: Path):
    asked = listing(server, tmp_path, listed=2, incomplete="score")
    cache = roll(tmp_path, asked)
    rows = cache.rows()
    assert_as_at_hand(cache.evidence(rows), LiveTeacher(teacher(), CAPTURE).evidence(rows))
    again = [body for body in server.asked if "prompt_logprobs" in body]
    assert {body["prompt_logprobs"] for body in again} == {32}
    assert 0 < len(again) <= 15
    assert cache.manifest.identity.listed_tokens is None
    assert all(not steps for shard in cache.shards() for steps in shard.incomplete())


def test_marks_that_lie_are_found(tmp_path: Path):
    """On sets that are whole, and on steps that a row does not have."""
    row = Row((3, 4, 5), (6, 7, END), ended=True)
    evidence = LiveTeacher(teacher(), CAPTURE).evidence([row])
    identity = replace(identity_of(teacher(), CAPTURE), listed_tokens=2)
    for marks, problem in (((0, 2), "marked as incomplete that is whole"), ((3,), "does not have")):
        folder = tmp_path / str(marks[0])
        with CacheWriter(folder, identity) as writer:
            writer.write("score-1", [CachedResponse(row, evidence, "score", marks)])
        (found,) = verify_cache(Cache(folder))
        assert problem in found
    with pytest.raises(CacheError, match="expected complete sets"):
        encode_rows(
            [CachedResponse(row, evidence, "score", (0,))], replace(identity, listed_tokens=None)
        )


def test_a_served_cache_is_another_than_one_of_a_teacher_at_hand(server: Server, tmp_path: Path):
    roll(tmp_path, listing(server, tmp_path))
    with pytest.raises(CacheError, match="normaliser: expected True, found False"):
        CacheWriter(tmp_path / "cache", identity_of(teacher(), CAPTURE))


def test_an_unknown_normaliser_takes_no_bytes():
    row = Row((3, 4, 5), (6, 7, END), ended=True)
    found = CachedResponse(row, LiveTeacher(teacher(), CAPTURE).evidence([row]), "score")
    identity = identity_of(teacher(), CAPTURE)
    sizes = [
        len(encode_rows([found], replace(identity, normaliser=known)).column("evidence")[0].as_py())
        for known in (True, False)
    ]
    assert sizes[0] - sizes[1] == 3 * 2  # 16 bits a step


def test_a_step_keeps_the_likeliest_and_leaves_padding_out():
    entries = {70: -0.2, 5: -3.0, 4: -3.0, 9: -9.0}
    assert listed_step(entries, 9, 3, 64) == Step((4, 5), (-3.0, -3.0), -9.0)
    for wrong, text in (
        ({5: -1.0}, "expected 3 listed tokens a step, found 1"),
        ({5: -1.0, 6: -2.0, 7: -9999.0}, "--logprobs-mode raw_logprobs"),
        ({5: -1.0, 6: -2.0, 7: float("nan")}, "--logprobs-mode raw_logprobs"),
        ({5: 12.0, 6: 11.0, 7: 3.0}, "--logprobs-mode raw_logprobs"),
        ({5: -0.1, 6: -0.1, 7: -0.2}, "of at most 1 together, found 2"),
        ({6: -1.0, 7: -2.0, 8: -3.0}, "expected the log-probability of token 5, found none"),
    ):
        with pytest.raises(ValueError, match=text):
            listed_step(wrong, 5, 3, 64)


def test_a_set_that_all_tokens_complete_is_not_incomplete():
    steps = [Step((3, 1), (-0.6931, -0.6931), -0.6931), Step((3, 1), (-1.0, -2.0), -1.0)]
    _, incomplete = listed_evidence(steps, CaptureConfig(0.9, 4))
    assert incomplete == (1,)
    _, incomplete = listed_evidence(steps, CaptureConfig(0.9, 2))
    assert incomplete == ()


def test_the_engine_is_tried_before_work_is_spent(server: Server, tmp_path: Path):
    said = listing(server, tmp_path).check(tokenizer(), 100)
    assert said.startswith(f"tiny at {server.url}, 32 tokens listed a step; ")
    assert int(said.split("; ")[1].split()[0]) > 30
    with pytest.raises(ModelError, match=r"expected rows of at most 128 tokens, .* found 129"):
        listing(server, tmp_path).check(tokenizer(), 129)
    other = ServerEngine(config_of(server, model="other"))
    with pytest.raises(ModelError, match="expected a server with the model other, found tiny"):
        listing(server, tmp_path, engine=other).check(tokenizer(), 100)
    server.cards.append({"id": "second"})
    with pytest.raises(ModelError, match="expected a server with one model, found tiny, second"):
        listing(server, tmp_path).check(tokenizer(), 100)


def test_another_tokenizer_is_refused(server: Server, tmp_path: Path):
    other = tiny_lm().tokenizer
    shifted: Any = type("Shifted", (), {"decode": lambda self, ids: other.decode([ids[0] ^ 1])})()
    with pytest.raises(ModelError, match=r"expected the tokenizer of teacher.path, found that"):
        listing(server, tmp_path).check(shifted, 100)


def test_the_same_rows_whatever_was_there_before(server: Server, tmp_path: Path):
    roll(tmp_path / "a", listing(server, tmp_path / "a"))
    roll(tmp_path / "b", listing(server, tmp_path / "b"))
    assert contents(tmp_path / "a/cache") == contents(tmp_path / "b/cache")
