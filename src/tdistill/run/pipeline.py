"""The stages of a run in order: teacher, data, rollouts, student, start, training, evaluation.

Every stage can be interrupted; the same command continues where it stopped and gives the same
result.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tdistill import strict
from tdistill.files import fingerprint
from tdistill.hashing import key_of
from tdistill.recipe import Recipe, recipe_dict
from tdistill.run.folders import RESOLVED_RECIPE, model_folder
from tdistill.run.stages import Say, Stages

if TYPE_CHECKING:
    from tdistill.data import Example
    from tdistill.evaluation.evaluate import Exam
    from tdistill.evidence.evidence import EvidenceSource
    from tdistill.evidence.rows import Row
    from tdistill.models.language_model import LanguageModel
    from tdistill.teacher.cache.reader import Cache
    from tdistill.teacher.source import LiveTeacher
    from tdistill.training.objectives import Objective


class Run:
    """One recipe in one folder.

    Args:
        recipe: what to do.
        folder: where everything goes; may hold an earlier or interrupted run of the recipe.
        say: prints a line for people.
    """

    def __init__(self, recipe: Recipe, folder: Path, say: Say = print) -> None:
        self.recipe, self.folder, self.say = recipe, folder, say
        folder.mkdir(parents=True, exist_ok=True)
        resolved = yaml.safe_dump(recipe_dict(recipe), sort_keys=False)
        (folder / RESOLVED_RECIPE).write_text(resolved, encoding="utf-8")
        self.stages = Stages(folder, say)
        self.labels = ("teacher", "start", *recipe.objectives)
        self._caches: dict[str, Cache] = {}
        self._chunks: dict[int, list[tuple[int, ...]]] = {}

    # Keys: what each stage depends on.

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key of every stage, from the recipe and the files it names."""
        r, plain = self.recipe, recipe_dict(self.recipe)
        keys = {"teacher": key_of(plain["teacher"], fingerprint(r.teacher.path))}
        data = {k: v for k, v in plain["data"].items() if not k.startswith("lm_")}
        files = {s: fingerprint(getattr(r.data, s)) for s in ("train", "valid", "test")}
        text = fingerprint(r.data.lm_text)
        keys["rollouts"] = key_of(keys["teacher"], data, files, plain["rollouts"])
        keys["held-out"] = key_of(keys["rollouts"], r.evaluation.rollouts_per_prompt)
        student = fingerprint(r.student.path)
        keys["student"] = key_of(keys["teacher"], plain["student"], student)
        keys["start"] = key_of(keys["student"], keys["rollouts"], plain["start"], text)
        for label in r.objectives:
            place = self.model_folder(label) == self.folder / "student"  # or models/
            own = plain["objectives"][label], plain["training"], text, place
            code = strict.source_file_of(plain["objectives"][label]["objective"])
            if code is not None:  # a class of the user's own
                own = *own, fingerprint(str(code))
            keys[label] = key_of(keys["start"], keys["rollouts"], own)
        for label in self.labels:
            keys[f"evaluate-{label}"] = key_of(keys[label], keys["held-out"], plain["evaluation"])
        keys["report"] = key_of(keys, plain["distilled"])
        return keys

    def model_folder(self, label: str) -> Path:
        """Where the model of a label is."""
        return model_folder(self.recipe, self.folder, label)

    @property
    def teacher_folder(self) -> Path:
        """Where the teacher can be loaded from fast."""
        return model_folder(self.recipe, self.folder, "teacher")

    # Stages.

    def prepare_teacher(self) -> None:
        """Convert a GGUF teacher to safetensors, once."""
        config = self.recipe.teacher
        if config.gguf_file is None:
            return

        def convert() -> dict[str, Any]:
            from tdistill.models.language_model import load, save

            save(load(config.path, gguf_file=config.gguf_file), self.teacher_folder)
            return {}

        self.stages.run("teacher", self.keys["teacher"], [self.teacher_folder], convert)

    @cached_property
    def teacher(self) -> LanguageModel:
        """The teacher, loaded when first needed."""
        from tdistill.models.language_model import load

        self.prepare_teacher()
        return load(self.teacher_folder)

    def release_teacher(self) -> None:
        """Forget the teacher until it is needed again: training reads the cache."""
        self.__dict__.pop("live_teacher", None)
        self.__dict__.pop("teacher", None)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that teacher and student share."""
        from tdistill.models.language_model import load_tokenizer

        self.prepare_teacher()
        return load_tokenizer(self.teacher_folder)

    @cached_property
    def live_teacher(self) -> LiveTeacher:
        """The teacher as a source of evidence."""
        from tdistill.teacher.source import LiveTeacher

        config = self.recipe.rollouts.capture
        return LiveTeacher(self.teacher, config, vocabulary_size=self.vocabulary_size)

    @cached_property
    def vocabulary_size(self) -> int:
        """Tokens that teacher and student share."""
        from tdistill.models.language_model import load, shared_vocabulary

        if self.recipe.student.path is not None:
            return shared_vocabulary(self.teacher, load(self.recipe.student.path))
        return self.cache("train").manifest.identity.vocabulary_size

    @cached_property
    def examples(self) -> dict[str, list[Example]]:
        """Training, validation and test examples; test prompts seen in training are left out."""
        from tdistill.run.examples import load_splits

        return load_splits(self.recipe.data, self.tokenizer, self.folder, self.say)

    @cached_property
    def rollouts(self) -> list[Row]:
        """Teacher responses to the training prompts, with evidence, in ``cache/``."""
        return self._rollouts("rollouts", "train", self.recipe.rollouts.n)

    @cached_property
    def held_out_rollouts(self) -> list[Row]:
        """Teacher responses to the test prompts, in ``cache-test/``; never trained on."""
        return self._rollouts("held-out", "test", self.recipe.evaluation.rollouts_per_prompt)

    def cache(self, split: str) -> Cache:
        """The cache of a split, opened once."""
        from tdistill.models.language_model import tokenizer_fingerprint
        from tdistill.teacher.cache.reader import Cache

        if split not in self._caches:
            fingerprint = tokenizer_fingerprint(self.tokenizer)
            folder = self._cache_folder(split)
            self._caches[split] = Cache(folder, tokenizer_fingerprint=fingerprint)
        return self._caches[split]

    def text_chunks(self, length: int) -> list[tuple[int, ...]]:
        """Plain text for the language-model stream in chunks of so many tokens, read once."""
        from tdistill.data import load_text_chunks

        text = self.recipe.data.lm_text
        if text is None:
            return []
        if length not in self._chunks:
            self._chunks[length] = load_text_chunks(text, self.tokenizer, length)
        return self._chunks[length]

    def _cache_folder(self, split: str) -> Path:
        return self.folder / ("cache" if split == "train" else f"cache-{split}")

    def _rollouts(self, stage: str, split: str, n: int) -> list[Row]:
        from dataclasses import replace

        from tdistill.progress import Progress
        from tdistill.teacher.cache.writer import CacheWriter, identity_of
        from tdistill.teacher.rollouts import collect_rollouts, plan_key

        config = replace(self.recipe.rollouts, n=n)
        folder = self._cache_folder(split)
        prompts = [example.prompt_ids for example in self.examples[split]]

        def sample() -> dict[str, Any]:
            bar = Progress(stage, len(prompts) * n)
            with CacheWriter(folder, identity_of(self.teacher, config.capture)) as writer:
                done = 0
                for rows in collect_rollouts(self.teacher, prompts, config, writer):
                    done += rows
                    bar.update(done, "responses")
            bar.close()
            return {"rows": done}

        self.stages.run(stage, self.keys[stage], [folder / "manifest.json"], sample)
        self._caches.pop(split, None)  # opened before there were new rows
        return self.cache(split).rows(shard=f"rollouts-{plan_key(prompts, config)}")

    def make_student(self) -> Path:
        """The untrained student; returns its folder."""
        folder = self.folder / "models" / "untrained"
        self.stages.run("student", self.keys["student"], [folder], self._make_student(folder))
        return folder

    def make_start(self) -> None:
        """The student every objective starts from: layers dropped, then healed by SFT."""
        from tdistill.training.objectives import SFT

        untrained = self.make_student()
        start = self.recipe.start
        if start is None:
            self._copy_start(untrained)
            return
        kinds = {"references": ["references"], "teacher": ["teacher"]}
        wanted = kinds.get(start.rows, ["references", "teacher"])

        def rows() -> list[Row]:
            return [row for kind in wanted for row in self.rows_of(kind)]

        self._train("start", SFT(), start.training, untrained, rows)

    def _copy_start(self, untrained: Path) -> None:
        folder = self.model_folder("start")

        def copy() -> dict[str, Any]:
            shutil.copytree(untrained, folder, dirs_exist_ok=True)
            return {}

        self.stages.run("start", self.keys["start"], [folder / "config.json"], copy)

    def _make_student(self, folder: Path) -> Any:
        from tdistill.models.language_model import load, save

        config = self.recipe.student

        def make() -> dict[str, Any]:
            from tdistill.training.student import drop_layers, evenly_spaced

            if config.path is not None:
                student = load(config.path)
            else:
                depth = self.teacher.model.config.num_hidden_layers
                student = drop_layers(self.teacher, evenly_spaced(depth, config.layers or depth))
            save(student, folder)
            return {"parameters": student.num_parameters}

        return make

    def check_student(self) -> None:
        """Refuse a student of another tokenizer or too many layers before any work is spent."""
        from tdistill.models.language_model import load_config
        from tdistill.training.student import evenly_spaced

        config = self.recipe.student
        if config.path is not None:
            self.say(f"  {self.vocabulary_size} tokens shared by teacher and student")
        if config.layers is not None:
            self.prepare_teacher()
            evenly_spaced(load_config(self.teacher_folder).num_hidden_layers, config.layers)

    def rows_of(self, kind: str) -> list[Row]:
        """Rows to train on: the ground-truth references, or the teacher's responses."""
        from tdistill.evidence.rows import Row

        if kind == "teacher":
            return self.rollouts
        return [
            Row(e.prompt_ids, e.reference_ids, e.reference_ended, "reference")
            for e in self.examples["train"]
            if e.reference_ids
        ]

    @cached_property
    def scored_references(self) -> list[Row]:
        """The training references, their evidence in ``cache/`` beside that of the rollouts."""
        from tdistill.run.references import score_references

        rows = self.rows_of("references")
        score_references(self, rows, self.cache("train").folder)
        self._caches.pop("train", None)  # opened before there were new rows
        return rows

    def train(self, labels: Sequence[str] | None = None) -> None:
        """Train every objective from the start, on the same evidence, order and updates."""
        self.make_start()
        for label in labels or self.recipe.objectives:
            self.train_one(label)

    def train_one(self, label: str) -> None:
        """Train one objective from the start, which must be there."""
        objective, start = self.recipe.objectives[label], self.model_folder("start")
        config = self.recipe.training
        self._train(label, objective, config, start, lambda: self.rows_of(objective.rows))

    def _train(self, label: str, objective: Objective, config: Any, start: Path, rows: Any) -> None:
        folder, checkpoints = self.model_folder(label), self.folder / "checkpoints" / label

        def work() -> dict[str, Any]:
            from tdistill.models.language_model import load, save
            from tdistill.training.tolerated_gap import resolve_gap
            from tdistill.training.train import train_student

            references = self.scored_references if objective.reference_share else []
            wants_teacher = objective.needs_live_teacher or objective.uses_student_rows
            self._guard_checkpoints(checkpoints, self.keys[label])
            responses = rows()
            resolved, chosen = resolve_gap(objective, lambda: self.cache("train"))
            if chosen is not None:
                self.say(f"  {chosen.text()}")
            trained, history = train_student(
                load(start),
                resolved,
                responses,
                config,
                checkpoints=checkpoints,
                vocabulary_size=self.vocabulary_size,
                source=None if label == "start" else self._source_for(objective),
                live_teacher=self.live_teacher if wants_teacher else None,
                references=references,
                text=self.text_chunks(config.text_chunk_tokens),
                label=label,
            )
            save(trained, folder)
            shutil.rmtree(checkpoints, ignore_errors=True)
            return {"history": history, "parameters": trained.num_parameters} | (
                {} if chosen is None else {"sets": asdict(chosen)}
            )

        self.stages.run(label, self.keys[label], [folder / "config.json"], work)

    def _source_for(self, objective: Objective) -> EvidenceSource | None:
        from tdistill.teacher.source import CachedTeacher

        # The teacher's sets are also what diagnostics are measured on, where there are any.
        if objective.rows == "teacher":
            return CachedTeacher(self.cache("train"))
        wanted = objective.needs_sets or objective.uses_student_rows
        return self.live_teacher if wanted else None  # references are in no cache

    def _guard_checkpoints(self, folder: Path, key: str) -> None:
        """Checkpoints of other settings must not be continued from."""
        note = folder / "key.txt"
        if folder.exists() and (not note.exists() or note.read_text(encoding="utf-8") != key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(key, encoding="utf-8")

    @cached_property
    def exam(self) -> Exam:
        """What every model is judged on."""
        from tdistill.evaluation.evaluate import Exam
        from tdistill.evaluation.imitation import hold_out
        from tdistill.teacher.source import CachedTeacher

        config, rows = self.recipe.evaluation, self.held_out_rollouts
        held_out = hold_out(
            rows,
            CachedTeacher(self.cache("test")),
            self.live_teacher,
            set_top_p=config.set_top_p,
            batch_size=config.batch_size,
        )
        test, valid = self.examples["test"], self.examples["valid"]
        return Exam(self.teacher, test, valid, held_out, config, self.vocabulary_size)

    def evaluate(self) -> None:
        """Judge every model on the test prompts."""
        self.say(f"  {len(self.held_out_rollouts)} held-out teacher responses")
        for label in self.labels:
            self.evaluate_one(label)

    def evaluate_one(self, label: str) -> None:
        """Judge one model on the test prompts."""

        def work() -> dict[str, Any]:
            from tdistill.evaluation.evaluate import judge
            from tdistill.models.language_model import load

            model = self.teacher if label == "teacher" else load(self.model_folder(label))
            return judge(label, model, self.exam) | {"parameters": model.num_parameters}

        stage = f"evaluate-{label}"
        self.stages.run(stage, self.keys[stage], [], work)

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of all stages that are done."""
        return self.stages.records(self.keys)
