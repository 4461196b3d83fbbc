"""A run on the teacher, the evidence and the untrained student of another run."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdistill.recipe import Recipe
from tdistill.run.pipeline import Run
from tdistill.run.stages import Say

if TYPE_CHECKING:
    from tdistill.data import Example
    from tdistill.evaluation.evaluate import Exam
    from tdistill.evidence.rows import Row
    from tdistill.models.language_model import LanguageModel
    from tdistill.teacher.cache.reader import Cache
    from tdistill.teacher.source import LiveTeacher


class Branch(Run):
    """One training seed of a comparison: its own start and objectives, everything else shared.

    Args:
        recipe: as that of ``shared`` in all but the seeds of training.
        folder: of this seed; every model is in ``models/``.
        shared: whose teacher, caches, examples and untrained student are used; loaded once.
        say: prints a line for people.
    """

    def __init__(self, recipe: Recipe, folder: Path, shared: Run, say: Say = print) -> None:
        self.shared = shared
        super().__init__(recipe, folder, say)
        self.labels = ("start", *recipe.objectives)
        self.seconds: dict[str, float] = {}  # that training and judging took, of what is done

    def model_folder(self, label: str) -> Path:
        """Where the model of a label is."""
        return self.shared.teacher_folder if label == "teacher" else self.folder / "models" / label

    @property
    def teacher_folder(self) -> Path:
        """Where the teacher can be loaded from fast."""
        return self.shared.teacher_folder

    def prepare_teacher(self) -> None:
        """Convert a GGUF teacher to safetensors, once."""
        self.shared.prepare_teacher()

    @cached_property
    def teacher(self) -> LanguageModel:
        """The shared teacher."""
        return self.shared.teacher

    @cached_property
    def live_teacher(self) -> LiveTeacher:
        """The shared teacher as a source of evidence."""
        return self.shared.live_teacher

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that teacher and student share."""
        return self.shared.tokenizer

    @cached_property
    def vocabulary_size(self) -> int:
        """Tokens that teacher and student share."""
        return self.shared.vocabulary_size

    @cached_property
    def examples(self) -> dict[str, list[Example]]:
        """The shared examples."""
        return self.shared.examples

    @cached_property
    def rollouts(self) -> list[Row]:
        """The shared teacher responses."""
        return self.shared.rollouts

    @cached_property
    def scored_references(self) -> list[Row]:
        """The shared references."""
        return self.shared.scored_references

    @cached_property
    def held_out_rollouts(self) -> list[Row]:
        """The shared held-out teacher responses."""
        return self.shared.held_out_rollouts

    @cached_property
    def exam(self) -> Exam:
        """What every model of every seed is judged on: the teacher's scores are made once."""
        return self.shared.exam

    def cache(self, split: str) -> Cache:
        """The shared cache of a split."""
        return self.shared.cache(split)

    def text_chunks(self, length: int) -> list[tuple[int, ...]]:
        """The shared text in chunks."""
        return self.shared.text_chunks(length)

    def make_student(self) -> Path:
        """The shared untrained student; returns its folder."""
        return self.shared.make_student()

    def done(self, label: str) -> bool:
        """Whether a model is trained and judged; its weights may be gone by then."""
        if label not in self.seconds:
            stages = (label, f"evaluate-{label}")
            records = self.stages.records({name: self.keys[name] for name in stages})
            if len(records) == len(stages):
                self.seconds[label] = sum(record["seconds"] for record in records.values())
        return label in self.seconds

    @property
    def has_start(self) -> bool:
        """Whether the start is there to train from."""
        config = self.model_folder("start") / "config.json"
        return self.stages.finished("start", self.keys["start"], [config]) is not None

    def finish(self, label: str, *, keep_model: bool = True) -> None:
        """Train and judge one model.

        Args:
            label: ``start`` or an objective.
            keep_model: otherwise its weights are removed once it is judged; never those of the
                start, from which objectives may be added later.
        """
        if label == "start":
            self.make_start()
        else:
            self.train_one(label)
        self.evaluate_one(label)
        if not keep_model and label != "start":
            shutil.rmtree(self.model_folder(label), ignore_errors=True)
