"""Sums to distil on, made from nothing, and the check of an answer to one.

Named in a recipe by its path: ``make: sums.py:Sums`` and ``verify: sums.py:is_right``;
`tdistill init arithmetic` writes both.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

SHARES = {"test": 0.1, "valid": 0.1, "train": 0.8}


@dataclass(frozen=True)
class Sums:
    """Additions and subtractions of two numbers, none of them asked twice."""

    largest: int = 99  # number of a sum
    prompts: int = 600  # in all
    seed: int = 0

    def make(self, folder: Path) -> None:
        """Write a file of prompts with their answers for each split."""
        pairs = [(a, b) for a in range(self.largest + 1) for b in range(a + 1)]
        asked = [f"What is {a} {word} {b}?" for a, b in pairs for word in ("plus", "minus")]
        random.Random(self.seed).shuffle(asked)
        asked, begun = asked[: self.prompts], 0
        for split, share in SHARES.items():
            part = asked[begun : begun + max(1, round(share * len(asked)))]
            rows = [json.dumps({"prompt": text, "completion": answer(text)}) for text in part]
            (folder / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
            begun += len(part)


def answer(prompt: str) -> str:
    """The right answer, in digits."""
    a, b = map(int, re.findall(r"\d+", prompt))
    return str(a + b if "plus" in prompt else a - b)


def is_right(response: str, references: list[str], prompt: str) -> bool:
    """Whether the last number of a response is the right one."""
    numbers = re.findall(r"-?\d+", response.replace(",", ""))
    return bool(numbers) and numbers[-1] == answer(prompt)
