"""The worlds under ``studies/``: what they hold is right, the same for a seed, apart by split."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from costs import views_of
from tdistill.strict import import_maker, source_files_of
from tdistill.strict.imported import import_class
from tdistill.training.objectives import Objective, ReverseKL
from world import make_batch

STUDIES = Path(__file__).parents[2] / "studies"


def maker(name: str) -> Any:
    return import_maker(str(STUDIES / name), "make")


def module(name: str) -> Any:
    return sys.modules[maker(name).__module__]


@pytest.fixture
def arithmetic() -> Any:
    return module("arithmetic.py:Arithmetic")


@pytest.fixture
def two_ways() -> Any:
    return maker("two_ways.py:TwoWays")


def test_the_code_of_a_world_is_its_file_and_what_the_studies_share(two_ways: Any):
    names = [file.name for file in source_files_of(two_ways)]
    assert names == ["two_ways.py", "from_scratch.py"]


def test_prompts_of_two_ways_are_apart_and_have_two_answers(two_ways: Any):
    world = two_ways(keys=20)
    splits = world.prompts()
    prompts = [prompt for split in splits.values() for prompt in split]
    assert len(set(prompts)) == len(prompts)
    assert two_ways(keys=20).prompts() == splits
    assert two_ways(keys=20, seed=1).prompts() != splits
    table = world.table
    assert len(table) == 20
    for prompt in splits["test"]:
        key, word = prompt.split()
        assert world.answers(prompt) == [f"#{table[key]}", f"={word}"]


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_teacher_of_two_ways_learns_right_answers_in_the_shares_asked_for(
    two_ways: Any, share: float
):
    world = two_ways(keys=20, table_share=share)
    lessons = world.lessons(1000)
    assert all(answer in world.answers(prompt) for prompt, answer in lessons)
    assert abs(sum(pair.answer[0] == "#" for pair in lessons) / 1000 - share) < 0.05


@pytest.mark.parametrize(
    ("a", "operation", "b", "text"),
    [
        (47, "plus", 38, "7+8=15; 4+3+1=8; so 85."),
        (50, "plus", 19, "0+9=9; 5+1=6; so 69."),
        (999, "plus", 111, "9+1=10; 9+1+1=11; 9+1+1=11; so 1110."),
        (83, "minus", 38, "13-8=5; 8-3-1=4; so 45."),
        (100, "minus", 99, "10-9=1; 10-9-1=0; 1-0-1=0; so 1."),
        (47, "times", 6, "7*6=42; 4*6+4=28; so 282."),
    ],
)
def test_worked_answers_go_column_by_column(
    arithmetic: Any, a: int, operation: str, b: int, text: str
):
    assert arithmetic.worked(arithmetic.Problem(a, operation, b)) == text


def steps(text: str) -> Iterator[bool]:
    """Whether each worked column is true."""
    for step in text.split("; ")[:-1]:
        left, _, right = step.partition("=")
        yield eval(left) == int(right)  # of our own digits and signs


@pytest.mark.parametrize("operations", ["plus minus", "times"])
def test_sums_are_right_apart_and_the_same_for_a_seed(arithmetic: Any, operations: str):
    sizes = dict.fromkeys(arithmetic.SPLITS, 100)
    arithmetic.SPLITS, before = sizes, arithmetic.SPLITS
    try:
        world = arithmetic.Arithmetic(operations=operations)
        splits = world.problems()
        assert arithmetic.Arithmetic(operations=operations).problems() == splits
        lessons = world.lessons(500)
    finally:
        arithmetic.SPLITS = before
    problems = [problem for split in splits.values() for problem in split]
    assert len(set(problems)) == len(problems)
    draw = random.Random(0)
    for problem in splits["test"]:
        prompt, worked = arithmetic.ask(problem, draw), arithmetic.worked(problem)
        assert str(problem.a) in prompt
        assert all(steps(worked))
        for answer in (arithmetic.direct(problem), worked):
            assert arithmetic.verify(answer, [arithmetic.direct(problem)], prompt)
    asked = {arithmetic.ask(p, draw) for s in ("test", "valid") for p in splits[s] for _ in "ab"}
    assert not asked & {pair.prompt for pair in lessons}
    assert 0.4 < sum("so" in pair.answer for pair in lessons) / 500 < 0.6


@pytest.mark.parametrize(
    "response", ["", "85", "86.", "185.", "7+8=15; 4+3+1=8", "85. 86.", "so .", "-85."]
)
def test_what_is_no_right_answer_is_told(arithmetic: Any, response: str):
    assert not arithmetic.verify(response, ["85."], "")


def test_the_tokens_of_a_world_spell_its_texts(arithmetic: Any):
    draw = random.Random(1)
    problems = [arithmetic.Problem(a, "plus", b) for a in range(10, 99, 7) for b in range(10, 99)]
    texts = [t for p in problems for t in (arithmetic.ask(p, draw), arithmetic.worked(p))]
    from_scratch = sys.modules["from_scratch"]
    tokenizer = from_scratch.pieces(arithmetic.PIECE, texts)
    for text in texts:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_a_tilt_of_strength_0_is_the_cloner_and_another_is_not():
    tilted: Any = import_class(str(STUDIES / "tilts.py:TiltedReverseKL"), Objective)
    batch = make_batch(discount=0.9)
    _, views = views_of(batch)
    plain = ReverseKL().loss(views, batch).loss
    free = {"centre": "none", "bootstrap": "teacher"}
    none = tilted(beta=0.0, **free).loss(views, batch)
    torch.testing.assert_close(none.loss, plain, rtol=1e-5, atol=1e-6)
    some = tilted(beta=2.0, **free).loss(views, batch)
    assert (some.loss - plain).abs().max() > 0.01
    torch.testing.assert_close(some.critic, none.critic)  # learned on the same returns
