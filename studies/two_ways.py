"""A world in which each prompt has two right answers, one of which small students cannot give.

A prompt is a key of two letters and a word: ``qx bjkr``. Right are the number that a table of
random numbers holds for the key, ``#48210``, and the word again, ``=bjkr``. The teacher takes the
table with a set probability. A small network can copy the word but has no room for the table.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from from_scratch import Lessons, Pair, network, pieces, write_lines

from tdistill.models.language_model import save

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
SPLITS = {"train": 2000, "valid": 100, "test": 200}


@dataclass(frozen=True)
class TwoWays(Lessons):
    """Teacher, student and prompts with both right answers."""

    keys: int = 500  # in the table
    table_share: float = 0.6  # of the prompts that the teacher answers from the table
    key: int = 2  # letters of a key
    digits: int = 5  # of a number
    word: int = 4  # letters of a word
    student_layers: int = 1
    student_width: int = 32

    def make(self, folder: Path) -> None:
        """Write ``teacher/``, ``student/`` and a JSONL file for each split."""
        tokenizer = pieces(".", [LETTERS + DIGITS + " #="])
        layers, width = self.student_layers, self.student_width
        student = network(tokenizer, layers=layers, width=width, inner=2, seed=self.seed + 1)
        save(student, folder / "student")
        for split, prompts in self.prompts().items():
            rows = ({"prompt": p, "references": self.answers(p)} for p in prompts)
            write_lines(folder / f"{split}.jsonl", rows)
        self.teach(self.beginner(tokenizer), self.lessons, folder)

    @cached_property
    def table(self) -> dict[str, str]:
        """A number for each key."""
        draw = random.Random(f"table {self.seed}")
        numbers: dict[str, str] = {}
        while len(numbers) < self.keys:
            numbers[_word(draw, self.key)] = "".join(draw.choices(DIGITS, k=self.digits))
        return numbers

    def answers(self, prompt: str) -> list[str]:
        """Both right answers: from the table, and the copy."""
        key, word = prompt.split()
        return ["#" + self.table[key], "=" + word]

    def prompts(self) -> dict[str, list[str]]:
        """Distinct prompts for each split."""
        draw, keys = random.Random(f"prompts {self.seed}"), list(self.table)
        made = iter(_distinct(draw, keys, self.word, sum(SPLITS.values())))
        return {split: [next(made) for _ in range(count)] for split, count in SPLITS.items()}

    def lessons(self, count: int) -> list[Pair]:
        """What the teacher learns from: a drawn prompt, answered in one drawn way."""
        draw, table = random.Random(f"lessons {self.seed}"), self.table
        keys = list(table)
        pairs = []
        for _ in range(count):
            key, word = draw.choice(keys), _word(draw, self.word)
            way = "#" + table[key] if draw.random() < self.table_share else "=" + word
            pairs.append(Pair(f"{key} {word}", way))
        return pairs


def _word(draw: random.Random, letters: int) -> str:
    return "".join(draw.choices(LETTERS, k=letters))


def _distinct(draw: random.Random, keys: list[str], letters: int, count: int) -> list[str]:
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompts[f"{draw.choice(keys)} {_word(draw, letters)}"] = None
    return list(prompts)
