"""Judging by a teacher behind a server, against the same teacher at hand and dense numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judging import (
    CAPTURE,
    END,
    ROWS,
    dense_log_probs,
    exam,
    examples,
    held_out,
    student,
    teacher,
)
from torch import Tensor

from serving import Server, config_of, dropped, failing, garbage, serving, spoilt
from tdistill.core import top_p_sets
from tdistill.errors import ServerError
from tdistill.evaluation.evaluate import Exam, judge
from tdistill.evaluation.imitation import hold_out, imitation
from tdistill.evaluation.policy import _drawn, kl_with_rest, log_policy, read_own_states
from tdistill.evaluation.responses import respond
from tdistill.evaluation.served import ABSENT, ServedTeacher, served_teacher
from tdistill.models.decoding import Decoding
from tdistill.models.language_model import tokenizer_fingerprint
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.listing.server import ServerEngine
from tdistill.teacher.listing.teacher import ListingTeacher
from tdistill.teacher.source import LiveTeacher

SAMPLE, GREEDY = Decoding(), Decoding(greedy=True)
NUCLEUS = Decoding(temperature=0.7, sampling_top_p=0.8)
SIZES = {"vocabulary_size": 64, "batch_size": 3}
ROUNDING = 2.0**-7  # nats, of a kept log-probability


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with serving(teacher()) as running:
        yield running


@pytest.fixture
def server(shared: Server) -> Server:
    return shared.anew()


def served(server: Server, folder: Path, **changes: Any) -> ServedTeacher:
    chosen: dict[str, Any] = {
        "engine": ServerEngine(config_of(server)),
        "capture": CaptureConfig(captured_top_p=0.9, max_set_size=64),
        "tokenizer_fingerprint": tokenizer_fingerprint(teacher().tokenizer),
        "vocabulary_size": 64,
        "end_ids": (END,),
        "listed": 64,
        "incomplete": "refuse",
        "unfinished": folder / "unfinished",
    }
    return served_teacher(teacher(), ListingTeacher(**(chosen | changes)), set_top_p=0.8)


def served_exam(asked: ServedTeacher, **changes: Any) -> Exam:
    """The examination of judging.py, whose teacher is elsewhere."""
    at_hand = exam(**changes)
    held = hold_out(ROWS, LiveTeacher(teacher(), CAPTURE), asked, set_top_p=0.8, batch_size=2)
    return replace(at_hand, teacher=asked, held_out=held)


def with_rest(target: Tensor, policy: Tensor) -> Tensor:
    """Set-and-rest KL of dense steps, by sorting: the fewest members that hold .8."""
    found = []
    for p, q in zip(target.exp(), policy.exp(), strict=True):
        order = p.argsort(descending=True, stable=True)
        inside = order[: int((p[order].cumsum(0) >= 0.8).nonzero()[0]) + 1]
        ours, theirs = (torch.cat([x[inside], 1 - x[inside].sum()[None]]) for x in (q, p))
        found.append((theirs * (theirs / ours).log()).sum())
    return torch.stack(found)


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLE, NUCLEUS], ids=["greedy", "T=1", "nucleus"])
def test_at_own_states_a_list_says_what_the_weights_say(
    decoding: Decoding, server: Server, tmp_path: Path
):
    at_hand = read_own_states(ROWS, decoding, student(), teacher(), **SIZES)
    found = read_own_states(ROWS, decoding, student(), served(server, tmp_path), **SIZES)
    assert np.array_equal(found.tokens_by_place, at_hand.tokens_by_place)
    assert found.total("entropy") == pytest.approx(at_hand.total("entropy"), rel=1e-5)
    off = abs(found.total("teacher_log_prob") - at_hand.total("teacher_log_prob"))
    assert (off <= ROUNDING * found.tokens).all()
    for i, row in enumerate(ROWS):
        own, target = dense_log_probs(student(), row), dense_log_probs(teacher(), row)
        policy = log_policy(own.float(), decoding).double()
        taken = torch.arange(len(own)), list(row.response_ids)
        whole = with_rest(target, own)
        assert found.total("kl_with_rest")[i] == pytest.approx(float(whole.sum()), abs=0.02)
        assert found.by_place["kl_with_rest"][i, 0] == pytest.approx(float(whole[0]), abs=0.01)
        assert found.total("kl_with_rest")[i] < at_hand.total("forward_kl")[i] + 0.02
        if bool(policy[taken].isfinite().all()):
            drawn = float((policy[taken] - target[taken]).sum())
            assert found.total("drawn_reverse_kl")[i] == pytest.approx(drawn, abs=0.04)


def test_a_token_at_the_edge_of_a_nucleus_counts_as_one_of_it():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    nucleus = Decoding(sampling_top_p=0.75)
    policy = log_policy(logits, nucleus)
    assert policy[0, 2] == float("-inf")
    shares = [_drawn(logits, policy, torch.tensor([a]), nucleus).exp().item() for a in range(3)]
    assert shares == pytest.approx([0.5 / 0.8, 0.3 / 0.8, 0.2 / 0.8])


def test_lumping_tokens_together_hides_divergence_and_adds_none():
    generator = torch.Generator().manual_seed(0)
    p, q = ((2 * torch.randn(200, 50, generator=generator)).log_softmax(-1) for _ in range(2))
    whole = (p.exp() * (p - q)).sum(-1)
    small, large = (kl_with_rest(top_p_sets(p, mass), q) for mass in (0.5, 0.95))
    assert (small >= 0).all()
    assert (small <= large + 1e-5).all()
    assert (large <= whole + 1e-5).all()
    everything = kl_with_rest(top_p_sets(p, 1.0), q)
    torch.testing.assert_close(everything, whole, rtol=1e-4, atol=1e-4)


def test_on_held_out_responses_the_sets_say_what_they_say_at_hand(server: Server, tmp_path: Path):
    asked = served(server, tmp_path)
    held = hold_out(ROWS, asked.listing, asked, set_top_p=0.8, batch_size=2)
    at_hand = imitation(student(), held_out())
    server.asked.clear()
    found = imitation(student(), held)
    assert not server.asked  # all that is needed was kept
    assert found.keys() == {x.replace("forward_kl", "kl_with_rest") for x in at_hand}
    for name in ("set_kl", "leak"):
        assert found[name].values == pytest.approx(at_hand[name].values, abs=0.01), name
    steps = [
        with_rest(dense_log_probs(teacher(), row), dense_log_probs(student(), row)) for row in ROWS
    ]
    assert found["kl_with_rest"].mean == pytest.approx(float(torch.cat(steps).mean()), abs=0.005)
    first = float(torch.stack([kl[0] for kl in steps]).mean())
    assert found["kl_with_rest@1"].mean == pytest.approx(first, abs=0.005)


def test_the_teacher_itself_needs_no_pass(server: Server, tmp_path: Path):
    asked = served(server, tmp_path)
    held = hold_out(ROWS, asked.listing, asked, set_top_p=0.8, batch_size=2)
    found, at_hand = imitation(asked, held), imitation(teacher(), held_out())
    assert found["kl_with_rest"].mean == found["set_kl"].mean == 0.0
    assert found["leak"].values == pytest.approx(at_hand["leak"].values, abs=0.01)


def test_greedily_it_answers_as_it_does_at_hand(server: Server, tmp_path: Path):
    asked, seen = served(server, tmp_path), []
    prompts = [e.prompt_ids for e in examples("a b")]
    sizes: dict[str, Any] = {"seeds": 2, "max_new_tokens": 6, "batch_size": 3}
    found = respond(asked, prompts, GREEDY, on_batch=seen.append, **sizes)
    assert found.responses == respond(teacher(), prompts, GREEDY, **sizes).responses
    assert sum(seen) == len(prompts)
    sampled = respond(asked, prompts, NUCLEUS, **sizes)
    assert [len(round_) for round_ in sampled.responses] == [4, 4]
    body = server.asked[-1]
    assert (body["temperature"], body["top_p"]) == (0.7, 0.8)
    assert len({body["seed"] for body in server.asked[4:]}) == 8


def test_its_own_row_is_that_of_the_weights_but_for_what_is_absent(server: Server, tmp_path: Path):
    only = {"greedy": GREEDY}
    found = judge(
        "teacher", served(server, tmp_path), served_exam(served(server, tmp_path), decodings=only)
    )
    expected = judge("teacher", teacher(), exam(decodings=only))
    ours, theirs = (record["scores"][0]["metrics"] for record in (found, expected))
    assert found["samples"] == expected["samples"]
    for name in ("rouge_l", "response_tokens", "ended", "repetition"):
        assert ours[name] == theirs[name]
    assert ours["teacher_nll"]["mean"] == pytest.approx(theirs["teacher_nll"]["mean"], abs=0.008)
    assert [name for name, value in ours.items() if value is None] == [
        "reverse_kl",
        "sequence_reverse_kl",
        "own_forward_kl",
        "entropy",
        "exposure_bias",
    ]


def test_a_students_record_has_what_a_list_gives_and_nothing_under_another_name(
    server: Server, tmp_path: Path
):
    found = judge("sft", student(), served_exam(served(server, tmp_path)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    sample = next(s["metrics"] for s in found["scores"] if s["decoding"] == "sample")
    absent = {name for name, value in sample.items() if value is None}
    assert absent == {"reverse_kl", "sequence_reverse_kl", "own_forward_kl", "exposure_bias"}
    assert absent < set(ABSENT)
    assert {"drawn_reverse_kl", "drawn_sequence_reverse_kl", "own_kl_with_rest"} < set(sample)
    assert found["imitation"]["metrics"]["forward_kl"] is None
    assert not {"forward_kl", "own_forward_kl"} & set(found["per_prompt"][""])


def test_lists_that_complete_no_set_are_asked_for_once_more(server: Server, tmp_path: Path):
    whole = read_own_states(ROWS, SAMPLE, student(), served(server, tmp_path), **SIZES)
    server.asked.clear()
    short = served(server, tmp_path, listed=1)
    found = read_own_states(ROWS, SAMPLE, student(), short, **SIZES)
    assert {body["prompt_logprobs"] for body in server.asked} == {1, 64}
    for name, sums in whole.by_place.items():
        assert np.array_equal(found.by_place[name], sums), name
    accepted = served(server, tmp_path, listed=1, incomplete="accept")
    smaller = read_own_states(ROWS, SAMPLE, student(), accepted, **SIZES)
    assert smaller.total("kl_with_rest").sum() < 0.9 * whole.total("kl_with_rest").sum()


def test_faults_that_pass_change_nothing(server: Server, tmp_path: Path):
    undisturbed = read_own_states(ROWS, SAMPLE, student(), served(server, tmp_path), **SIZES)
    server.faults += [dropped, failing(500), garbage]
    engine = ServerEngine(config_of(server, retries=3))
    asked = served(server, tmp_path, engine=engine)
    found = read_own_states(ROWS, SAMPLE, student(), asked, **SIZES)
    assert not server.faults
    for name, sums in undisturbed.by_place.items():
        assert np.array_equal(found.by_place[name], sums), name


def test_wrong_answers_end_it(server: Server, tmp_path: Path):
    def without_lists(answer: dict[str, Any]) -> None:
        answer["choices"][0].pop("prompt_logprobs")

    server.faults += [spoilt(without_lists)]
    with pytest.raises(ServerError, match="expected prompt_logprobs at each of"):
        read_own_states(ROWS, SAMPLE, student(), served(server, tmp_path), **SIZES)


def test_responses_that_have_come_are_not_asked_for_again(server: Server, tmp_path: Path):
    prompts = [e.prompt_ids for e in examples("a b")]
    sizes: dict[str, Any] = {"seeds": 2, "max_new_tokens": 6, "batch_size": 3}
    one = {"engine": ServerEngine(config_of(server, concurrency=1, retries=0))}
    server.faults += [lambda request: None] * 5 + [failing(500)] * 9
    with pytest.raises(ServerError, match=r"found status 500.*what is finished stays"):
        respond(served(server, tmp_path, **one), prompts, SAMPLE, **sizes)
    server.faults.clear()
    server.asked.clear()
    again = served(server, tmp_path)
    found = respond(again, prompts, SAMPLE, **sizes)
    assert len(server.asked) == 3
    assert (
        found.responses
        == respond(served(server, tmp_path / "x"), prompts, SAMPLE, **sizes).responses
    )
    again.listing.forget_responses()
    assert not (tmp_path / "unfinished/evaluation").exists()
