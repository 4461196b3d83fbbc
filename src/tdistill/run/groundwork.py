"""What all students of a run share, made once: teacher, evidence, exam, untrained student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from tdistill.data import Example, check_text_source, load_text_chunks
from tdistill.errors import InvalidValueError
from tdistill.evaluation.evaluate import Exam
from tdistill.evaluation.examine import examine
from tdistill.evaluation.imitation import hold_out
from tdistill.evaluation.served import ServedTeacher
from tdistill.evaluation.verifier import load_verifier
from tdistill.evidence.rows import Row
from tdistill.files import replacing_folder, write_atomically
from tdistill.models import language_model
from tdistill.models.adoption import adopt, shared_vocabulary
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import Pair, Tokens
from tdistill.models.positions import check_positions, check_rows
from tdistill.models.precision import tf32_allowed
from tdistill.models.row_trials import check_reading
from tdistill.models.scores import check_head
from tdistill.recipe import Recipe, refuse_unknown_normaliser
from tdistill.run.examples import load_splits, now, read_clock, references_field, write_clock
from tdistill.run.folders import files_of_model
from tdistill.run.given import Divided, Given, load_rows, row_of
from tdistill.run.keys import checked_key
from tdistill.run.once import once
from tdistill.run.stages import Say, note_key, workplace_key
from tdistill.run.supplies import Sampled, Scored, Supply, sampled_identity
from tdistill.run.teachers import Teachers
from tdistill.run.worlds import make_world
from tdistill.teacher.cache.manifest import CacheIdentity, read_manifest
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.shares import Share
from tdistill.teacher.source import CachedTeacher, LiveTeacher
from tdistill.training.layer_choice import choose_layers
from tdistill.training.student import drop_layers, evenly_spaced

_SAMPLING = ("rollouts", "evaluation")  # sections that say how long a response may be


class Groundwork(Teachers):
    """The work that comes before any training, and that no training seed is in.

    Args:
        recipe: of the run.
        folder: of the run; may hold what an earlier or interrupted one left.
        say: prints a line for people.
    """

    def __init__(self, recipe: Recipe, folder: Path, say: Say) -> None:
        super().__init__(recipe, folder, say)
        self.data_report = ""  # what the data doctor found, once the examples are loaded
        self._caches: dict[str, Cache] = {}
        self._chunks: dict[int, list[tuple[int, ...]]] = {}

    # The world.

    def make_world(self) -> None:
        """Let the recipe's own class make what the run starts from, once for all that share it."""
        if self.recipe.world is not None:
            make_world(self.recipe, self.placed, self.world, self.keys["world"], self.say)

    # Models.

    @once
    def load_live_teacher(self) -> LiveTeacher:
        """The teacher as a source of evidence."""
        config, size = self.recipe.rollouts.capture, self.count_vocabulary()
        head = self.recipe.training.head
        return LiveTeacher(self.load_teacher(), config, vocabulary_size=size, head=head)

    @once
    def load_student(self) -> LanguageModel:
        """The recipe's checkpoint, with the teacher's tokenizer and ends; says what it takes."""
        given = language_model.load(str(self.placed.student.path), weights=self.student_weights)
        student, changes = adopt(given, self.load_face())
        for change in changes:
            self.say(f"  student: {change}")
        return student

    @once
    def count_vocabulary(self) -> int:
        """Tokens that teacher and student share."""
        if self.placed.student.path is not None:
            return shared_vocabulary(self.load_face(), self.load_student())
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
    def sample_rollouts(self) -> Sequence[Row]:
        """Teacher responses to train on, with evidence, in ``cache/``."""
        return self._gather("rollouts", "train")

    @once
    def sample_held_out(self) -> Sequence[Row]:
        """Teacher responses to the test prompts, in ``cache-test/``; never trained on."""
        return self._gather("held-out", "test")

    def sample_share(self, share: Share) -> int:
        """A share of both, in caches of its own beside them; returns the number of responses."""
        self.keep_clock()
        supplies = {split: self._supply(split) for split in ("train", "test")}
        done = 0
        for split, supply in supplies.items():
            if not isinstance(supply, Sampled):
                raise InvalidValueError(
                    "--shard: expected a recipe that samples the teacher, found rollouts.cache or "
                    "rollouts.responses; leave it out, or use `tdistill score --shard`"
                )
            with tf32_allowed(self.recipe.rollouts.tf32):
                done += supply.fill_share(self._cache_folder(split), share)
        return done

    def wanted_identity(self) -> CacheIdentity | None:
        """Of the caches that rollouts will be written to; None if they all are there."""
        if self.stages.finished("rollouts", self.keys["rollouts"], []) is not None:
            return None
        supply = self._supply("train")
        if isinstance(supply, Given):
            return read_manifest(supply.cache).identity
        return sampled_identity(self.load_sampler(), self.recipe.rollouts.capture)

    def prepared(self) -> bool:
        """Whether responses and student are there, and every check of all the rest was passed."""
        outputs = {
            "rollouts": [self._cache_folder("train") / "manifest.json"],
            "student": files_of_model(self._untrained),
        }
        found = [self.stages.finished(x, self.keys[x], paths) for x, paths in outputs.items()]
        return None not in found and workplace_key(self.folder) == checked_key(self.recipe)

    def keep_checked(self) -> None:
        """Note that all was looked at that a stage depends on."""
        note_key(self.folder, checked_key(self.recipe))

    def _gather(self, stage: str, split: str) -> Sequence[Row]:
        folder, supply = self._cache_folder(split), self._supply(split)

        def fill() -> dict[str, Any]:
            self.keep_clock()
            write_atomically(self.folder / "data-doctor.txt", self.data_report)
            with tf32_allowed(self.recipe.rollouts.tf32):
                return {"rows": supply.fill(folder)}

        shards = [folder / f"{name}.arrow" for name in supply.shards]
        self.stages.run(stage, self.keys[stage], [folder / "manifest.json", *shards], fill)
        self._caches.pop(split, None)  # opened before there were new rows
        return supply.rows(self.open_cache(split))

    def _supply(self, split: str) -> Supply:
        """Where the responses of a split come from."""
        config = self.placed.rollouts
        if config.given:
            return self.find_given()[split]
        prompts = [example.prompt_ids for example in self.load_examples()[split]]
        if split == "test":
            config = replace(config, n=self.recipe.evaluation.rollouts_per_prompt)
        stage = {"train": "rollouts", "test": "held-out"}[split]
        return Sampled(stage, prompts, config, self.load_sampler)

    @once
    def find_given(self) -> dict[str, Supply]:
        """The responses of training and test that the recipe names instead of sampling."""
        config, examples = self.placed.rollouts, self.load_examples()
        each = self.recipe.evaluation.rollouts_per_prompt
        divided = Divided(examples["test"], examples["valid"], each)
        tokenizer, scorer = self.load_tokenizer(), self.load_scorer
        if config.responses is None:
            fingerprint = language_model.tokenizer_fingerprint(tokenizer)
            place, teachers = str(config.cache), config.teachers
            found = divided.given(place, config.capture, fingerprint, scorer, teachers=teachers)
            self._check_normaliser(found["train"])
            return found
        data, clock = self.placed.data, self.clock()
        rows, told = load_rows(config.responses, tokenizer, data, clock=clock)
        self.say(told)
        return divided.scored(rows, scorer)

    def _check_normaliser(self, supply: Supply) -> None:
        if isinstance(supply, Given) and not read_manifest(supply.cache).identity.normaliser:
            refuse_unknown_normaliser(self.recipe, f"in {supply.cache}")

    def collect_rows(self, kind: str) -> Sequence[Row]:
        """Rows to train on: the ground-truth ``references``, or the ``teacher``'s responses."""
        if kind == "teacher":
            return self.sample_rollouts()
        return [row_of(e) for e in self.load_examples()["train"] if e.reference_ids]

    @once
    def score_references(self) -> Sequence[Row]:
        """The training references, their evidence in ``cache/`` beside that of the rollouts."""
        rows, folder = self.collect_rows("references"), self._cache_folder("train")
        scorer = self.load_live_teacher if self.at_hand else self.load_scorer
        supply = Scored("score references", rows, scorer)
        outputs = [folder / "manifest.json", *(folder / f"{x}.arrow" for x in supply.shards)]
        key = self.keys["references"]

        def fill() -> dict[str, Any]:
            with tf32_allowed(self.recipe.rollouts.tf32):
                return {"rows": supply.fill(folder)}

        self.stages.run("references", key, outputs, fill)
        self._caches.pop("train", None)  # opened before there were new rows
        return rows

    # The student before training.

    def check_student(self) -> None:
        """Refuse a student that cannot be made, or rows too long, before any work is spent."""
        config = self.recipe.student
        if config.path is not None:
            self.say(f"  {self.count_vocabulary()} tokens shared by teacher and student")
            self._check_model(self.load_student())
        if not self.at_hand:  # what depends on the teacher's weights is seen where they are
            return
        made = self.stages.finished(
            "student", self.keys["student"], files_of_model(self._untrained)
        )
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
        examples = self.load_examples()
        prompts = [Pair(e.prompt_ids, ()) for rows in examples.values() for e in rows]
        warnings = [check_rows(model, prompts, "data.max_prompt_tokens")]
        longest = max((len(pair.prompt_ids) for pair in prompts), default=0)
        for field, new in self._new_tokens().items():
            # The last token is predicted, never read.
            warnings.append(check_positions(model, longest + new - 1, field))
        for field, rows in self._given_rows().items():
            warnings.append(check_rows(model, rows, field))
        for warning in filter(None, warnings):
            self.say(f"  {warning}")

    def _new_tokens(self) -> dict[str, int]:
        """The longest response that is sampled, by the field that says so."""
        config = self.recipe
        fields = {f"{x}.max_new_tokens": getattr(config, x).max_new_tokens for x in _SAMPLING}
        if any(objective.uses_student_rows for objective in config.objectives.values()):
            fields["training.replay.max_new_tokens"] = config.training.replay.max_new_tokens
        return fields

    def _given_rows(self) -> dict[str, Sequence[Tokens]]:
        """Rows to read that nobody samples, by the field that sets their length."""
        found: dict[str, Sequence[Tokens]] = {}
        if references_field(self.recipe) is not None:
            found["data.max_response_tokens"] = self.collect_rows("references")
        if self.placed.rollouts.given:
            for supply in self.find_given().values():
                if isinstance(supply, Scored):
                    found["rollouts.responses"] = supply.responses
        if self.placed.data.lm_text is not None:
            length = self.recipe.training.text_chunk_tokens
            found["training.text_chunk_tokens"] = [Pair((0,) * length, ())]
        return found

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
                student.model.float()  # trained in float32, whatever the teacher computes in
                record = {"layers": {k: v for k, v in asdict(choice).items() if v}}
            with replacing_folder(folder) as partial:
                language_model.save(student, partial)
            return {"parameters": student.num_parameters} | record

        self.stages.run("student", self.keys["student"], files_of_model(folder), make)
        return folder

    # Evaluation.

    @once
    def prepare_exam(self) -> Exam:
        """What every model is judged on."""
        config, rows, teacher = self.recipe.evaluation, self.sample_held_out(), self.load_judge()
        held_out = hold_out(
            rows,
            CachedTeacher(self.open_cache("test")),
            self.load_live_teacher() if isinstance(teacher, LanguageModel) else teacher,
            set_top_p=config.set_top_p,
            batch_size=config.batch_size,
        )
        examples, size = self.load_examples(), self.count_vocabulary()
        return Exam(teacher, examples["test"], examples["valid"], held_out, config, size)

    def judge_teacher(self) -> None:
        """Judge the teacher on the test prompts."""
        self.say(f"  {len(self.sample_held_out())} held-out teacher responses")

        def judge() -> dict[str, Any]:
            with tf32_allowed(self.recipe.evaluation.tf32):
                exam = self.prepare_exam()
                found = examine("teacher", exam.teacher, exam)
            if isinstance(exam.teacher, ServedTeacher):
                exam.teacher.listing.forget_responses()
            return found

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
