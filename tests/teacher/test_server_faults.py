"""Faults of a server: nothing wrong is kept, nothing finished is lost, a cure is named."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import Fault, Server, config_of, dropped, failing, garbage, serving, slow, spoilt
from tdistill.errors import InvalidValueError, ModelError
from tdistill.models.language_model import tokenizer_fingerprint
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.config import CaptureConfig, ServerConfig
from tdistill.teacher.listing.journal import Journal
from tdistill.teacher.listing.server import ServerEngine
from tdistill.teacher.listing.steps import Answer, Step
from tdistill.teacher.listing.teacher import ListingTeacher
from tdistill.teacher.rollouts import collect_rollouts
from teaching import END, PROMPTS, contents, settings, teacher
from tiny import tokenizer

CAPTURE = CaptureConfig(captured_top_p=0.9, max_set_size=16)


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with serving(teacher()) as running:
        yield running


@pytest.fixture
def server(shared: Server) -> Server:
    return shared.anew()


def roll(folder: Path, server: Server, **changes: Any) -> Cache:
    asked = ListingTeacher(
        ServerEngine(config_of(server, **changes)),
        CAPTURE,
        tokenizer_fingerprint(tokenizer()),
        vocabulary_size=64,
        end_ids=(END,),
        listed=16,
        incomplete="accept",
        unfinished=folder / "unfinished",
    )
    with CacheWriter(folder / "cache", asked.identity(CAPTURE)) as writer:
        list(collect_rollouts(asked, PROMPTS, settings(capture=CAPTURE), writer))
    return Cache(folder / "cache")


@pytest.fixture(scope="module")
def undisturbed(shared: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    roll(folder, shared)
    return contents(folder / "cache")


@pytest.mark.parametrize(
    "fault",
    [dropped, failing(500), failing(503, Retry_After="0"), failing(429), garbage, slow(3.0)],
    ids=["dropped", "500", "503", "429", "garbage", "slow"],
)
def test_what_passes_is_asked_again_and_changes_nothing(
    fault: Fault, server: Server, tmp_path: Path, undisturbed: dict[str, bytes]
):
    server.faults += [fault, fault]
    roll(tmp_path, server, timeout=1.5)
    assert contents(tmp_path / "cache") == undisturbed
    assert len(server.asked) == 15 + 2
    assert not list((tmp_path / "unfinished").iterdir())


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (dropped, "disconnected"),
        (failing(500), "found status 500: trouble 500"),
        (garbage, "found no JSON"),
        (slow(0.5), r"found no answer in 0\.2 s"),
    ],
    ids=["dropped", "500", "garbage", "slow"],
)
def test_what_lasts_ends_in_one_line_with_a_cure(
    fault: Fault, found: str, server: Server, tmp_path: Path
):
    server.faults += [fault] * 40
    with pytest.raises(ModelError, match=found) as error:
        roll(tmp_path, server, timeout=0.2, concurrency=1)
    text = str(error.value)
    assert "at each of 3 tries; what is finished stays: look after the server" in text
    assert len(text.splitlines()) == 1
    assert not list((tmp_path / "cache").glob("*.arrow"))


def test_a_server_that_is_not_there(tmp_path: Path):
    config = ServerConfig("http://127.0.0.1:9", retries=1, first_wait=0.01)
    with pytest.raises(ModelError, match=r"http://127.0.0.1:9/v1/models: expected an answer"):
        assert ServerEngine(config).model


def test_what_is_finished_stays_and_is_not_asked_for_again(
    server: Server, tmp_path: Path, undisturbed: dict[str, bytes]
):
    """The second unit of four breaks at its third response, one request after the other."""
    server.faults += [lambda request: None] * 6 + [failing(400)] * 30
    with pytest.raises(ModelError, match="found status 400: trouble 400; start it with"):
        roll(tmp_path, server, concurrency=1)
    # The first unit is in a shard, or its answers are in line for one: its thread may come later.
    journals = [Journal(path).read() for path in (tmp_path / "unfinished").iterdir()]
    assert {0, 1} in [set(answers) for answers in journals]
    assert len(Cache(tmp_path / "cache")) + sum(map(len, journals)) == 6
    server.asked.clear()
    server.faults.clear()
    roll(tmp_path, server)
    assert len(server.asked) == 15 - 6
    assert contents(tmp_path / "cache") == undisturbed
    assert not list((tmp_path / "unfinished").iterdir())


def test_the_reason_is_told_whichever_unit_fails(server: Server, tmp_path: Path):
    """The second unit is asked for beside the first, and fails before that has its answers."""
    first, *later = sorted(PROMPTS, key=len)
    server.faults_by_prompt = {first: slow(0.4)} | dict.fromkeys(later[1:], failing(400))
    with pytest.raises(ModelError, match="found status 400: trouble 400"):
        roll(tmp_path, server, concurrency=8)
    journals = [Journal(path).read() for path in (tmp_path / "unfinished").iterdir()]
    # What was under way is waited for, and there: in a shard, or in line for one.
    assert len(Cache(tmp_path / "cache")) + sum(map(len, journals)) >= 3


def of(choice: dict[str, Any], **changes: Any) -> None:
    choice.update(changes)


def without(name: str) -> Callable[[Any], Any]:
    return lambda answer: answer["choices"][0].pop(name) and None


def changed(**changes: Any) -> Callable[[Any], Any]:
    return lambda answer: of(answer["choices"][0], **changes)


def shortened(answer: Any) -> None:
    """The list of log-probabilities lacks a step."""
    answer["choices"][0]["logprobs"]["top_logprobs"].pop()


def fewer(answer: Any) -> None:
    """Only the two likeliest tokens are listed."""
    for top in answer["choices"][0]["logprobs"]["top_logprobs"]:
        for name in list(top)[2:]:
            del top[name]


def processed(answer: Any) -> None:
    """Log-probabilities after the cut to the nucleus, as --logprobs-mode processed_logprobs has."""
    for top in answer["choices"][0]["logprobs"]["top_logprobs"]:
        for name in list(top)[2:]:
            top[name] = -9999.0


def by_text(answer: Any) -> None:
    tops = answer["choices"][0]["logprobs"]["top_logprobs"]
    tops[:] = [{f"word {name}": value for name, value in top.items()} for top in tops]


def infinite(answer: Any) -> None:
    for top in answer["choices"][0]["logprobs"]["top_logprobs"]:
        top[next(iter(top))] = float("nan")


def negative(answer: Any) -> None:
    tops = answer["choices"][0]["logprobs"]["top_logprobs"]
    tops[:] = [{**top, "token_id:-5": -9.0} for top in tops]


def gigantic(answer: Any) -> None:
    for top in answer["choices"][0]["logprobs"]["top_logprobs"]:
        top[next(iter(top))] = -(10**400)


WRONG: list[tuple[str, Callable[[Any], Any], str]] = [
    ("other-model", lambda a: of(a, model="another"), "an answer of model tiny, found another"),
    ("no-token-ids", without("token_ids"), "the server must know return_token_ids"),
    ("ids-beyond", changed(token_ids=[64]), "expected token_ids: ids below 64"),
    ("ids-of-text", changed(token_ids=["a"]), "expected token_ids: ids below 64"),
    ("no-ids", changed(token_ids=[]), "expected token_ids: ids below 64, at least one"),
    ("other-prompt", changed(prompt_token_ids=[1, 2]), "the server changes prompts"),
    ("no-logprobs", without("logprobs"), "ask a server that gives logprobs"),
    ("null-logprobs", changed(logprobs=None), "ask a server that gives logprobs"),
    ("a-step-less", shortened, "at each of . steps, found none or others"),
    ("fewer-listed", fewer, "expected 16 listed tokens a step, found"),
    ("processed", processed, "start the server with --logprobs-mode raw_logprobs"),
    ("not-a-number", infinite, "start the server with --logprobs-mode raw_logprobs"),
    ("by-text", by_text, "the server must know return_tokens_as_token_ids"),
    ("negative-ids", negative, "expected ids of tokens, found -5"),
    ("gigantic", gigantic, "expected log-probabilities by token ids"),
    ("a-prompt-of-one-number", changed(prompt_token_ids=5), "found one to 5; the server changes"),
    ("aborted", changed(finish_reason="abort"), "found one ended by abort"),
    ("stops-early", changed(token_ids=[5, 6], finish_reason="stop"), "ends elsewhere"),
    ("no-choices", lambda a: of(a, choices=[]), "expected one choice"),
    ("a-list", lambda a: [a], "expected an object"),
    ("a-word", lambda a: "yes", "expected an object, found yes"),
]


@pytest.mark.parametrize(("spoil", "text"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_answer_is_never_kept(
    spoil: Callable[[Any], Any], text: str, server: Server, tmp_path: Path
):
    """The first is right, the second is not."""
    server.faults += [lambda request: None, spoilt(spoil)]
    with pytest.raises(ModelError, match=text) as error:
        roll(tmp_path, server, concurrency=1)
    assert "nothing of it was kept" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    seeds = [body["seed"] for body in server.asked]
    assert len(set(seeds)) == len(seeds) < 5  # a wrong answer is no reason to ask again
    assert not list((tmp_path / "cache").glob("*.arrow"))
    (journal,) = (tmp_path / "unfinished").iterdir()
    assert 1 not in Journal(journal).read()
    assert 0 in Journal(journal).read()


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_KEY", "sesame-17")
    roll(tmp_path, server, key_variable="MY_KEY")
    assert {seen["Authorization"] for seen in server.headers_seen} == {"Bearer sesame-17"}
    server.headers_seen.clear()
    roll(tmp_path / "without", server)
    assert all("Authorization" not in seen for seen in server.headers_seen)
    server.faults += [failing(401)]
    with pytest.raises(ModelError, match="put its API key into the environment as MY_KEY") as error:
        roll(tmp_path / "refused", server, key_variable="MY_KEY")
    assert "sesame" not in str(error.value)
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert kept
    assert all(b"sesame" not in file.read_bytes() for file in kept)


@pytest.mark.parametrize(
    "url", ["http://name:secret@host", "http://host?key=secret", "host:8000", "ftp://host", ""]
)
def test_an_address_that_is_none_or_holds_a_key_is_refused_without_repeating_it(url: str):
    with pytest.raises(InvalidValueError, match="url: expected") as error:
        ServerConfig(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"concurrency": 0}, {"retries": -1}, {"timeout": 0.0}, {"first_wait": -1.0}]
)
def test_impossible_settings_are_refused(changes: dict[str, Any]):
    with pytest.raises(InvalidValueError, match=next(iter(changes))):
        ServerConfig(**changes)


@pytest.mark.parametrize("count", [1, 4])
def test_so_many_requests_run_beside_each_other(server: Server, tmp_path: Path, count: int):
    together = threading.Barrier(count, timeout=20)
    server.faults += [lambda request: together.wait() and None] * 4  # of the first unit
    server.most_inside = 0
    roll(tmp_path, server, concurrency=count, timeout=30.0)
    assert server.most_inside == count


def test_a_journal_that_was_cut_off_loses_its_last_line_alone(tmp_path: Path):
    journal = Journal(tmp_path / "folder" / "a.jsonl")
    answers = [Answer((3, 1), True, (Step((3,), (-0.1,), -0.1), Step((1,), (-0.2,), -0.2)))] * 3
    for place, answer in enumerate(answers):
        journal.add(place, answer)
    text = journal.path.read_text()
    journal.path.write_text(text[:-20] + "\n" + json.dumps([1, {}]) + "\nnull\n")
    assert journal.read() == {0: answers[0], 1: answers[1]}
    journal.remove()
    assert journal.read() == {}
