"""What all students of a run share, made once: teacher, evidence, exam, untrained student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from tdistill.data import Example, check_text_source, load_text_chunks
from tdistill.evaluation import evaluate
from tdistill.evaluation.evaluate import Exam
from tdistill.evaluation.imitation import hold_out
from tdistill.evaluation.sweep import sweep
from tdistill.evaluation.verifier import load_verifier
from tdistill.evidence.rows import Row
from tdistill.files import replacing_folder, write_atomically
from tdistill.models import language_model
from tdistill.models.adoption import adopt, shared_vocabulary
from tdistill.models.language_model import LanguageModel
from tdistill.models.positions import check_positions
from tdistill.models.row_trials import check_reading
from tdistill.models.scores import check_head
from tdistill.progress import Progress
from tdistill.recipe import Recipe, placed
from tdistill.run.examples import load_splits, now, read_clock, references_field, write_clock
from tdistill.run.folders import model_folder, world_folder
from tdistill.run.keys import stage_keys
from tdistill.run.stages import Say, Stages
from tdistill.run.worlds import make_world
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.loading import load_stopping
from tdistill.teacher.rollouts import (
    collect_rollouts,
    count_sampled,
    plan_key,
    planned_shards,
)
from tdistill.teacher.scoring import collect_scores, planned_score_shards
from tdistill.teacher.source import CachedTeacher, LiveTeacher
from tdistill.training.layer_choice import choose_layers
from tdistill.training.student import drop_layers, evenly_spaced

_Self = TypeVar("_Self")
_Made = TypeVar("_Made")


def once(method: Callable[[_Self], _Made]) -> Callable[[_Self], _Made]:
    """Let a method do its work at the first call; later calls give what it made."""
    name = f"_{method.__name__}"

    @wraps(method)
    def made(self: _Self) -> _Made:
        if name not in vars(self):
            setattr(self, name, method(self))
        return getattr(self, name)

    return made


class Groundwork:
    """The work that comes before any training, and that no training seed is in.

    Args:
        recipe: of the run.
        folder: of the run; may hold what an earlier or interrupted one left.
        say: prints a line for people.
    """

    def __init__(self, recipe: Recipe, folder: Path, say: Say) -> None:
        self.recipe, self.folder, self.say = recipe, folder, say
        self.world = world_folder(recipe, folder)
        self.placed = placed(recipe, self.world)
        self.keys = stage_keys(recipe)
        self.stages = Stages(folder, say)
        self.data_report = ""  # what the data doctor found, once the examples are loaded
        self._caches: dict[str, Cache] = {}
        self._chunks: dict[int, list[tuple[int, ...]]] = {}

    # The world.

    def make_world(self) -> None:
        """Let the recipe's own class make what the run starts from, once for all that share it."""
        if self.recipe.world is not None:
            make_world(self.recipe, self.placed, self.world, self.keys["world"], self.say)

    # The teacher.

    @property
    def teacher_folder(self) -> Path:
        """Where the teacher is, or will be once it is converted."""
        return model_folder(self.recipe, self.folder, "teacher")

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
        return load_stopping(self.teacher_folder, self.recipe.data)

    @once
    def load_live_teacher(self) -> LiveTeacher:
        """The teacher as a source of evidence."""
        config, size = self.recipe.rollouts.capture, self.count_vocabulary()
        head = self.recipe.training.head
        return LiveTeacher(self.load_teacher(), config, vocabulary_size=size, head=head)

    def release_teacher(self) -> None:
        """Forget the teacher until it is needed again: training reads the cache."""
        for name in ("_load_teacher", "_load_live_teacher", "_load_student"):
            vars(self).pop(name, None)

    @once
    def load_tokenizer(self) -> Any:
        """The tokenizer that teacher and student share."""
        self.convert_teacher()
        return language_model.load_tokenizer(self.teacher_folder)

    @once
    def load_student(self) -> LanguageModel:
        """The recipe's checkpoint, with the teacher's tokenizer and ends; says what it takes."""
        given = language_model.load(str(self.placed.student.path))
        student, changes = adopt(given, self.load_teacher())
        for change in changes:
            self.say(f"  student: {change}")
        return student

    @once
    def count_vocabulary(self) -> int:
        """Tokens that teacher and student share."""
        if self.placed.student.path is not None:
            return shared_vocabulary(self.load_teacher(), self.load_student())
        return self.open_cache("train").manifest.identity.vocabulary_size

    # Data and evidence.

    @once
    def clock(self) -> datetime:
        """The moment that chat templates are told: when the run began."""
        return read_clock(self.folder) or now()

    def keep_clock(self) -> None:
        """Write the moment down; of several processes the first one's counts for all."""
        kept = read_clock(self.folder)
        if kept is None:
            write_clock(self.folder, self.clock())
        elif kept != self.clock():
            for name in ("_clock", "_load_examples"):
                vars(self).pop(name, None)

    @once
    def load_examples(self) -> dict[str, list[Example]]:
        """Training, validation and test examples; no prompt is in two of them."""
        data, field = self.placed.data, references_field(self.recipe)
        if data.lm_text is not None:
            check_text_source(data.lm_text)
        splits, self.data_report = load_splits(
            data, self.load_tokenizer(), self.say, clock=self.clock(), references_for=field
        )
        if self.recipe.evaluation.verify is not None:
            load_verifier(self.recipe.evaluation.verify).try_out(splits["test"])
        return splits

    def load_text(self, length: int) -> list[tuple[int, ...]]:
        """Plain text for the language-model stream in chunks of so many tokens, read once."""
        text = self.placed.data.lm_text
        if text is None:
            return []
        if length not in self._chunks:
            self._chunks[length] = load_text_chunks(text, self.load_tokenizer(), length)
        return self._chunks[length]

    def open_cache(self, split: str) -> Cache:
        """The cache of a split, opened once."""
        if split not in self._caches:
            fingerprint = language_model.tokenizer_fingerprint(self.load_tokenizer())
            folder = self._cache_folder(split)
            self._caches[split] = Cache(folder, tokenizer_fingerprint=fingerprint)
        return self._caches[split]

    def _cache_folder(self, split: str) -> Path:
        return self.folder / ("cache" if split == "train" else f"cache-{split}")

    @once
    def sample_rollouts(self) -> list[Row]:
        """Teacher responses to the training prompts, with evidence, in ``cache/``."""
        return self._sample("rollouts", "train", self.recipe.rollouts.n)

    @once
    def sample_held_out(self) -> list[Row]:
        """Teacher responses to the test prompts, in ``cache-test/``; never trained on."""
        return self._sample("held-out", "test", self.recipe.evaluation.rollouts_per_prompt)

    def wanted_identity(self) -> CacheIdentity | None:
        """Of the caches that rollouts will be written to; None if they all are there."""
        if self.stages.finished("rollouts", self.keys["rollouts"], []) is not None:
            return None
        return identity_of(self.load_teacher(), self.recipe.rollouts.capture)

    def prepared(self) -> bool:
        """Whether responses and student are there, so that all checks were passed before."""
        outputs = {
            "rollouts": self._cache_folder("train") / "manifest.json",
            "student": self.folder / "models" / "untrained",
        }
        found = [self.stages.finished(x, self.keys[x], [path]) for x, path in outputs.items()]
        return None not in found

    def _sample(self, stage: str, split: str, n: int) -> list[Row]:
        config, folder = replace(self.recipe.rollouts, n=n), self._cache_folder(split)
        prompts = [example.prompt_ids for example in self.load_examples()[split]]

        def sample() -> dict[str, Any]:
            self.keep_clock()
            write_atomically(self.folder / "data-doctor.txt", self.data_report)
            teacher = self.load_teacher()
            with CacheWriter(folder, identity_of(teacher, config.capture)) as writer:
                done = count_sampled(prompts, config, writer)
                bar = Progress(stage, len(prompts) * n, "responses", done=done)
                rows = sum(collect_rollouts(teacher, prompts, config, writer, bar.advance))
                bar.close()
                return {"rows": rows}

        shards = [folder / f"{name}.arrow" for name in planned_shards(prompts, config)]
        self.stages.run(stage, self.keys[stage], [folder / "manifest.json", *shards], sample)
        self._caches.pop(split, None)  # opened before there were new rows
        return self.open_cache(split).rows(shard=f"rollouts-{plan_key(prompts, config)}")

    def collect_rows(self, kind: str) -> list[Row]:
        """Rows to train on: the ground-truth ``references``, or the ``teacher``'s responses."""
        if kind == "teacher":
            return self.sample_rollouts()
        return [
            Row(e.prompt_ids, e.reference_ids, e.reference_ended, "reference")
            for e in self.load_examples()["train"]
            if e.reference_ids
        ]

    @once
    def score_references(self) -> list[Row]:
        """The training references, their evidence in ``cache/`` beside that of the rollouts."""
        rows, folder = self.collect_rows("references"), self._cache_folder("train")

        def score() -> dict[str, Any]:
            live = self.load_live_teacher()
            with CacheWriter(folder, identity_of(live.teacher, live.config)) as writer:
                bar = Progress("score references", len(rows), "responses")
                done = sum(collect_scores(live, rows, writer, on_finished=bar.advance))
                bar.close()
                return {"rows": done}

        shards = [folder / f"{name}.arrow" for name in planned_score_shards(rows)]
        outputs = [folder / "manifest.json", *shards]
        self.stages.run("references", self.keys["references"], outputs, score)
        self._caches.pop("train", None)  # opened before there were new rows
        return rows

    # The student before training.

    def check_student(self) -> None:
        """Refuse a student that cannot be made, or rows too long, before any work is spent."""
        config = self.recipe.student
        if config.path is not None:
            self.say(f"  {self.count_vocabulary()} tokens shared by teacher and student")
            self._check_model(self.load_student())
        made = self.stages.finished("student", self.keys["student"], [self._untrained])
        if made is not None:
            return
        self.convert_teacher()
        if config.layers is not None:
            depth = language_model.load_config(self.teacher_folder).num_hidden_layers
            evenly_spaced(depth, config.layers)
            # Which layers a measured rule takes is known later; that some can be, now.
            rule = "first" if config.choose == "first" else "even"
            kept = choose_layers(self.load_teacher(), config.layers, rule).kept
            drop_layers(self.load_teacher(), kept)
        self._check_model(self.load_teacher())

    def _check_model(self, model: LanguageModel) -> None:
        """Refuse a model that cannot be read as asked, or rows that it has no positions for."""
        check_reading(model.model)
        head, size = self.recipe.training.head, model.vocabulary_size
        check_head(model.model, vocabulary_size=size, head=head)
        prompts = [e.prompt_ids for rows in self.load_examples().values() for e in rows]
        longest = max(map(len, prompts), default=0)
        for name in ("rollouts", "evaluation"):
            new = getattr(self.recipe, name).max_new_tokens
            # The last token is predicted, never read.
            warning = check_positions(model, longest + new - 1, f"{name}.max_new_tokens")
            if warning is not None:
                self.say(f"  {warning}")

    @property
    def _untrained(self) -> Path:
        return self.folder / "models" / "untrained"

    def make_student(self) -> Path:
        """The untrained student; returns its folder."""
        config, folder = self.placed.student, self._untrained

        def make() -> dict[str, Any]:
            record: dict[str, Any] = {}
            if config.layers is None:
                student = self.load_student()
            else:
                teacher = self.load_teacher()
                choice = choose_layers(
                    teacher,
                    config.layers,
                    config.choose,
                    self.sample_rollouts() if config.measured else [],
                    measured_tokens=config.measured_tokens,
                )
                self.say(f"  {choice.text()}")
                student = drop_layers(teacher, choice.kept)
                record = {"layers": {k: v for k, v in asdict(choice).items() if v}}
            with replacing_folder(folder) as partial:
                language_model.save(student, partial)
            return {"parameters": student.num_parameters} | record

        self.stages.run("student", self.keys["student"], [folder], make)
        return folder

    # Evaluation.

    @once
    def prepare_exam(self) -> Exam:
        """What every model is judged on."""
        config, rows = self.recipe.evaluation, self.sample_held_out()
        held_out = hold_out(
            rows,
            CachedTeacher(self.open_cache("test")),
            self.load_live_teacher(),
            set_top_p=config.set_top_p,
            batch_size=config.batch_size,
        )
        examples, size = self.load_examples(), self.count_vocabulary()
        teacher = self.load_teacher()
        return Exam(teacher, examples["test"], examples["valid"], held_out, config, size)

    def judge_teacher(self) -> None:
        """Judge the teacher on the test prompts."""
        self.say(f"  {len(self.sample_held_out())} held-out teacher responses")

        def judge() -> dict[str, Any]:
            exam = self.prepare_exam()
            teacher = exam.teacher
            own = {"sweep": sweep("teacher", teacher, exam), "parameters": teacher.num_parameters}
            return evaluate.judge("teacher", teacher, exam) | own

        self.stages.run("evaluate-teacher", self.keys["evaluate-teacher"], [], judge)

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of the stages that are done."""
        own = (
            "world",
            "teacher",
            "rollouts",
            "references",
            "held-out",
            "student",
            "evaluate-teacher",
        )
        return self.stages.records({name: self.keys[name] for name in own if name in self.keys})
