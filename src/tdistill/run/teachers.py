"""The teacher of a run: at hand, without its weights, or asked through an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tdistill.evaluation.served import ServedTeacher, served_teacher
from tdistill.files import replacing_folder
from tdistill.models import language_model
from tdistill.models.language_model import LanguageModel, tokenizer_fingerprint
from tdistill.models.outline import load_outline
from tdistill.models.positions import check_positions
from tdistill.models.weights import FLOAT32, DType, WeightsConfig
from tdistill.recipe import Recipe, placed
from tdistill.run.folders import model_folder, world_folder
from tdistill.run.keys import stage_keys
from tdistill.run.once import once
from tdistill.run.stages import Say, Stages
from tdistill.teacher.listing.server import ServerEngine
from tdistill.teacher.listing.teacher import Engine, ListingTeacher
from tdistill.teacher.listing.vllm_engine import VllmEngine
from tdistill.teacher.loading import load_stopping, stopping
from tdistill.teacher.source import LiveTeacher


class Teachers:
    """Loads what is asked for, once.

    Args:
        recipe: of the run.
        folder: of the run.
        say: prints a line for people.
    """

    def __init__(self, recipe: Recipe, folder: Path, say: Say) -> None:
        self.recipe, self.folder, self.say = recipe, folder, say
        self.world = world_folder(recipe, folder)
        self.placed = placed(recipe, self.world)
        self.keys = stage_keys(recipe)
        self.stages = Stages(folder, say)

    @property
    def teacher_folder(self) -> Path:
        """Where the teacher is, or will be once it is converted."""
        return model_folder(self.recipe, self.folder, "teacher")

    @property
    def at_hand(self) -> bool:
        """Whether this process samples the teacher itself."""
        return self.recipe.teacher.backend == "transformers"

    @property
    def judges_at_hand(self) -> bool:
        """Whether models are judged by the teacher's weights in this process."""
        return self.recipe.judges_at_hand

    @property
    def student_weights(self) -> WeightsConfig:
        """How students are loaded: in float32, which is also what they are trained in."""
        return replace(FLOAT32, attention=self.recipe.student.attention)

    @property
    def served_dtype(self) -> DType:
        """The precision of DIR/student: as asked for, or of the checkpoint that it comes from."""
        origin = self.placed.student.path or self.teacher_folder
        return language_model.saved_dtype(origin, self.recipe.student.served_dtype)

    def convert_teacher(self) -> None:
        """Convert a GGUF teacher to safetensors, once."""
        config = self.placed.teacher
        if config.gguf_file is None:
            return

        def convert() -> dict[str, Any]:
            model = language_model.load(config.path, gguf_file=config.gguf_file)
            with replacing_folder(self.teacher_folder) as partial:
                language_model.save(model, partial)
            return {}

        self.stages.run("teacher", self.keys["teacher"], [self.teacher_folder], convert)

    @once
    def load_teacher(self) -> LanguageModel:
        """The teacher."""
        self.convert_teacher()
        weights = self.recipe.teacher.weights
        return load_stopping(self.teacher_folder, self.recipe.data, weights=weights)

    @once
    def load_face(self) -> LanguageModel:
        """The teacher without its weights, where somebody else has them."""
        if self.at_hand:
            return self.load_teacher()
        return stopping(load_outline(self.teacher_folder), self.recipe.data)

    @once
    def load_tokenizer(self) -> Any:
        """The tokenizer that teacher and student share."""
        self.convert_teacher()
        return language_model.load_tokenizer(self.teacher_folder)

    def load_sampler(self) -> LanguageModel | ListingTeacher:
        """Who is asked for responses."""
        return self.load_teacher() if self.at_hand else self.load_engine()

    @once
    def load_scorer(self) -> LiveTeacher | ListingTeacher:
        """Who reads given responses, as a cache keeps them: over the teacher's whole vocabulary."""
        if not self.at_hand:
            return self.load_engine()
        capture, head = self.recipe.rollouts.capture, self.recipe.training.head
        return LiveTeacher(self.load_teacher(), capture, head=head)

    @once
    def load_engine(self) -> ListingTeacher:
        """The teacher that is asked through a server, or through vLLM in this process."""
        config, capture, face = self.placed.teacher, self.recipe.rollouts.capture, self.load_face()
        return ListingTeacher(
            engine=self._open_engine(),
            capture=capture,
            tokenizer_fingerprint=tokenizer_fingerprint(face.tokenizer),
            vocabulary_size=face.vocabulary_size,
            end_ids=face.end_ids,
            listed=config.listed_tokens or capture.max_set_size or face.vocabulary_size,
            incomplete=config.incomplete,
            unfinished=self.folder / "unfinished",
        )

    def _open_engine(self) -> Engine:
        config = self.placed.teacher
        if config.backend == "server":
            return ServerEngine(config.server)
        return VllmEngine(str(self.teacher_folder), config.vllm, dtype=config.weights.dtype)

    @once
    def load_judge(self) -> LanguageModel | ServedTeacher:
        """The teacher that models are judged by."""
        if self.judges_at_hand:
            return self.load_teacher()
        top_p = self.recipe.evaluation.set_top_p
        return served_teacher(self.load_face(), self.load_engine(), set_top_p=top_p)

    def check_engine(self, longest: int, judged: int) -> str:
        """Try the engine before work is spent.

        Args:
            longest: tokens of the longest prompt.
            judged: of the longest of those that models are judged by.

        Raises:
            ModelError: it is not there, has another model, or cannot be asked as the recipe wants.
        """
        teacher, face = self.load_engine(), self.load_face()
        new = self.recipe.rollouts.max_new_tokens
        warning = check_positions(face, longest + new - 1, "rollouts.max_new_tokens")
        if warning is not None:
            self.say(f"  {warning}")
        said = teacher.check(face.tokenizer, longest + new)
        if not self.judges_at_hand:
            own = judged + self.recipe.evaluation.max_new_tokens
            teacher.check_room(own, "evaluation.max_new_tokens", reads=True)
        return said

    def release_teacher(self) -> None:
        """Forget the teacher until it is needed again: training reads the cache."""
        names = ("teacher", "live_teacher", "scorer", "student", "face", "engine", "judge")
        for name in names:
            vars(self).pop(f"_load_{name}", None)
