"""A world of sums in words and digits, answered directly or worked column by column.

``What is 47 plus 38?`` is rightly answered by ``85.`` and by ``7+8=15; 4+3+1=8; so 85.``. The
teacher takes either way with a set probability. To answer directly a network must carry in its
head; worked answers are longer, but every step is small.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from from_scratch import Lessons, Pair, network, pieces, write_lines

from tdistill.models.language_model import save

SPLITS = {"test": 200, "valid": 100, "train": 2000}
STUDENTS = {"small": (1, 16), "middle": (2, 48), "large": (4, 128)}  # layers and width
TEMPLATES = {
    "plus": (
        "What is {a} plus {b}?",
        "Add {b} to {a}.",
        "{a} + {b} = ?",
        "How much is {a} and {b}?",
    ),
    "minus": ("What is {a} minus {b}?", "Take {b} from {a}.", "{a} - {b} = ?"),
    "times": ("What is {a} times {b}?", "Multiply {a} by {b}.", "{a} * {b} = ?"),
}
PIECE = r" ?[A-Za-z]+ ?|\d|[^A-Za-z\d ] ?| "  # a word, a digit or a mark with the spaces around it


class Problem(NamedTuple):
    """What is asked. No result is negative, and one multiplies by one digit."""

    a: int
    operation: str
    b: int

    @property
    def result(self) -> int:
        a, b = self.a, self.b
        return {"plus": a + b, "minus": a - b, "times": a * b}[self.operation]


def verify(response: str, references: list[str], prompt: str) -> bool:
    """Whether a response ends with the number that a reference ends with."""
    found = _final(response)
    return found is not None and found in [_final(reference) for reference in references]


def _final(answer: str) -> int | None:
    match = re.search(r"(?:^|[\s=])(-?\d+)\.\s*$", answer)
    return int(match[1]) if match else None


def direct(problem: Problem) -> str:
    """The answer alone."""
    return f"{problem.result}."


def worked(problem: Problem) -> str:
    """The answer after its columns, from the right."""
    columns = {"plus": _plus, "minus": _minus, "times": _times}[problem.operation]
    return f"{'; '.join(columns(problem.a, problem.b))}; so {problem.result}."


def _plus(a: int, b: int) -> list[str]:
    steps, carry = [], 0
    for x, y in _columns(a, b):
        total = x + y + carry
        steps.append(f"{x}+{y}{f'+{carry}' if carry else ''}={total}")
        carry = total // 10
    return steps


def _minus(a: int, b: int) -> list[str]:
    steps, borrowed = [], 0
    for x, y in _columns(a, b):
        top = x + 10 * (x - y - borrowed < 0)
        steps.append(f"{top}-{y}{'-1' if borrowed else ''}={top - y - borrowed}")
        borrowed = top // 10
    return steps


def _times(a: int, b: int) -> list[str]:
    steps, carry = [], 0
    for x, _ in _columns(a, 0):
        total = x * b + carry
        steps.append(f"{x}*{b}{f'+{carry}' if carry else ''}={total}")
        carry = total // 10
    return steps


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """Digits of both numbers, from the right."""
    size = len(str(max(a, b)))
    one, two = (reversed(f"{number:0{size}d}") for number in (a, b))
    return [(int(x), int(y)) for x, y in zip(one, two, strict=True)]


@dataclass(frozen=True)
class Arithmetic(Lessons):
    """Teacher, students ``student-small``, ``-middle`` and ``-large``, and sums."""

    digits: int = 2  # of the numbers
    operations: str = "plus minus"  # of plus, minus and times
    direct_share: float = 0.5  # of the prompts that the teacher answers directly
    teacher_steps: int = 4000
    learning_rate: float = 2e-3

    def make(self, folder: Path) -> None:
        """Write ``teacher/``, the students and a JSONL file for each split."""
        tokenizer = pieces(PIECE, self.write_problems(folder))
        for name, (layers, width) in STUDENTS.items():
            student = network(tokenizer, layers=layers, width=width, seed=self.seed + 1)
            save(student, folder / f"student-{name}")
        self.teach(self.beginner(tokenizer), self.lessons, folder)

    def write_problems(self, folder: Path) -> list[str]:
        """A JSONL file for each split; returns prompts and answers of all problems there are."""
        splits = self.problems()
        draw = random.Random(f"templates {self.seed}")
        texts: list[str] = []
        for split, problems in splits.items():
            rows = [
                {"prompt": ask(x, draw), "references": [direct(x), worked(x)]} for x in problems
            ]
            if split in SPLITS:
                write_lines(folder / f"{split}.jsonl", rows)
            texts += [text for row in rows for text in (row["prompt"], *row["references"])]
        return texts

    def problems(self) -> dict[str, list[Problem]]:
        """All problems, shared out to the splits; ``unused`` has the rest."""
        low, high = 10 ** (self.digits - 1), 10**self.digits
        problems = [
            Problem(a, operation, b)
            for operation in self.operations.split()
            for a in range(low, high)
            for b in (range(2, 10) if operation == "times" else range(low, high))
            if operation != "minus" or b <= a
        ]
        random.Random(f"problems {self.seed}").shuffle(problems)
        left = iter(problems)
        splits = {split: [next(left) for _ in range(count)] for split, count in SPLITS.items()}
        return {**splits, "unused": list(left)}

    def lessons(self, count: int) -> list[Pair]:
        """What the teacher learns from: a drawn problem of no test, answered in a drawn way."""
        draw, splits = random.Random(f"lessons {self.seed}"), self.problems()
        pool = [*splits["train"], *splits["unused"]]
        pairs = []
        for _ in range(count):
            problem = draw.choice(pool)
            way = direct if draw.random() < self.direct_share else worked
            pairs.append(Pair(ask(problem, draw), way(problem)))
        return pairs


def ask(problem: Problem, draw: random.Random) -> str:
    """A problem in words."""
    return draw.choice(TEMPLATES[problem.operation]).format(a=problem.a, b=problem.b)
