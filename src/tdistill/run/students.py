"""The students of one training seed: a common start, and one for each objective from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tdistill.evaluation.examine import examine
from tdistill.evidence.evidence import EvidenceSource
from tdistill.evidence.rows import Row
from tdistill.files import replacing_folder
from tdistill.models import language_model
from tdistill.models.precision import tf32_allowed
from tdistill.processes import is_first_process
from tdistill.run.folders import files_of_model, model_folder, seed_folder, tracking_folder
from tdistill.run.groundwork import Groundwork
from tdistill.run.keys import seeded, stage_keys
from tdistill.run.stages import Stages, open_workplace
from tdistill.teacher.cache.cached_rows import JoinedRows
from tdistill.teacher.source import CachedTeacher
from tdistill.training import train
from tdistill.training.config import TrainConfig
from tdistill.training.critic import CRITIC_FILE, load_critic
from tdistill.training.divergence import signs_of_failure
from tdistill.training.folding import fold, unfold
from tdistill.training.objectives import SFT, Objective
from tdistill.training.tolerated_gap import resolve_gap

START = "start"


class Students:
    """Trains and judges the models of one training seed.

    Args:
        groundwork: what they share with those of other seeds.
        number: of the seed, from 0; it is added to the recipe's training seeds.
    """

    def __init__(self, groundwork: Groundwork, number: int = 0) -> None:
        self.groundwork, self.number = groundwork, number
        self.recipe = seeded(groundwork.recipe, number)
        self.folder = seed_folder(groundwork.folder, number)
        self.labels = (START, *self.recipe.objectives)
        self.keys = stage_keys(self.recipe)
        self.stages = Stages(self.folder, self.say)
        self.seconds: dict[str, float] = {}  # that a stage took, of those known to be done

    def say(self, line: str) -> None:
        """Print a line for people; of the first seed it is bare."""
        self.groundwork.say(f"seed-{self.number} {line}" if self.number else line)

    def model_folder(self, label: str) -> Path:
        """Where the model of a label is."""
        return model_folder(self.recipe, self.folder, label)

    def keeps(self, label: str) -> bool:
        """Whether the weights stay once the model is judged: always the start's and the result."""
        result = label == self.recipe.distilled and self.number == 0
        return self.recipe.keep_models or label == START or result

    def trained(self, label: str) -> bool:
        """Whether a model is trained; once it is judged its weights may be gone."""
        gone = not self.keeps(label) and self.judged(label)
        return self._done(label, [] if gone else files_of_model(self.model_folder(label)))

    def judged(self, label: str) -> bool:
        """Whether a model is judged."""
        return self._done(f"evaluate-{label}", [])

    def _done(self, stage: str, outputs: list[Path]) -> bool:
        if stage not in self.seconds:
            record = self.stages.finished(stage, self.keys[stage], outputs)
            if record is not None:
                self.seconds[stage] = record["seconds"]
        return stage in self.seconds

    def train(self, label: str) -> None:
        """Train one model: the start from the untrained student, an objective from the start."""
        if label == START:
            self._make_start()
            return
        objective, relative = self.recipe.objectives[label], self._relative(label)
        if relative is not None:
            self._refold(label, relative)
            return
        self._train(
            label,
            objective,
            self.recipe.training,
            self.model_folder(START),
            lambda: self.groundwork.collect_rows(objective.rows),
        )

    def judge(self, label: str) -> None:
        """Judge one model on the test prompts; remove those not kept that no other is made of."""

        def work() -> dict[str, Any]:
            weights = self.groundwork.student_weights
            with tf32_allowed(self.recipe.evaluation.tf32):
                exam = self.groundwork.prepare_exam()
                model = language_model.load(self.model_folder(label), weights=weights)
                return examine(label, model, exam)

        stage = f"evaluate-{label}"
        self.stages.run(stage, self.keys[stage], [], work)
        for x in self.labels:
            if not self.keeps(x) and self.judged(x) and all(map(self.trained, self._family(x))):
                shutil.rmtree(self.model_folder(x), ignore_errors=True)

    def damaged(self) -> list[Path]:
        """Files of models that are not as they were written; those that were removed are none."""
        stages = [*self.labels, "publish"] if self.number == 0 else self.labels
        return [file for x in stages for file in self.stages.changed(x, self.keys[x])]

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of the stages that are done."""
        own = [stage for x in self.labels for stage in (x, f"evaluate-{x}")]
        return self.stages.records({name: self.keys[name] for name in own})

    def _make_start(self) -> None:
        """The student every objective starts from: layers dropped, then healed by SFT."""
        untrained, start = self.groundwork.make_student(), self.recipe.start
        if start is None:
            self._copy_start(untrained)
            return
        kinds = ("references", "teacher") if start.rows == "both" else (start.rows,)

        def rows() -> Sequence[Row]:
            parts = [self.groundwork.collect_rows(kind) for kind in kinds]
            return parts[0] if len(parts) == 1 else JoinedRows(parts)

        self._train(START, SFT(), start.training, untrained, rows)

    def _copy_start(self, untrained: Path) -> None:
        folder = self.model_folder(START)

        def copy() -> dict[str, Any]:
            with replacing_folder(folder) as partial:
                shutil.copytree(untrained, partial, dirs_exist_ok=True)
            return {}

        self.stages.run(START, self.keys[START], files_of_model(folder), copy)

    def _train(
        self,
        label: str,
        objective: Objective,
        config: TrainConfig,
        start: Path,
        rows: Callable[[], Sequence[Row]],
    ) -> None:
        folder, checkpoints = self.model_folder(label), self.folder / "checkpoints" / label
        ground = self.groundwork

        def work() -> dict[str, Any]:
            references = ground.score_references() if objective.reference_share else []
            wants_teacher = objective.needs_live_teacher or objective.uses_student_rows
            if is_first_process():
                open_workplace(checkpoints, self.keys[label])
            responses = rows()
            resolved, chosen = resolve_gap(objective, lambda: ground.open_cache("train"))
            if chosen is not None:
                self.say(f"  {chosen.text()}")
            place = replacing_folder(folder) if is_first_process() else nullcontext()
            with place as partial:
                trained, history = train.train_student(
                    language_model.load(start, weights=ground.student_weights),
                    resolved,
                    responses,
                    config,
                    checkpoints=checkpoints,
                    vocabulary_size=ground.count_vocabulary(),
                    source=None if label == START else self._source_for(objective),
                    live_teacher=ground.load_live_teacher() if wants_teacher else None,
                    references=references,
                    text=ground.load_text(config.text_chunk_tokens),
                    label=label,
                    logs=tracking_folder(ground.folder) / self._tracked_as(label),
                    critic_folder=partial if config.keep_critic else None,
                )
                if partial is not None:
                    language_model.save(trained, partial)
            if is_first_process():
                shutil.rmtree(checkpoints, ignore_errors=True)
            record = {"history": history, "parameters": trained.num_parameters}
            record["warnings"] = signs_of_failure(history)
            return record | ({} if chosen is None else {"sets": asdict(chosen)})

        outputs = files_of_model(folder)
        self.stages.run(label, self.keys[label], outputs, work, together=True)

    def _relative(self, label: str) -> str | None:
        """The first label of its family, where its model and its critic are there; or None."""
        first = next(iter(self._family(label)), label)
        critic = self.model_folder(first) / CRITIC_FILE
        return first if first != label and self.trained(first) and critic.exists() else None

    def _family(self, label: str) -> list[str]:
        """The labels whose training is its own but for how the kept critic's values are folded."""
        unfolded = {x: objective.unfolded for x, objective in self.recipe.objectives.items()}
        own = unfolded.get(label) if self.recipe.training.keep_critic else None
        return [] if own is None else [x for x, other in unfolded.items() if other == own]

    def _refold(self, label: str, relative: str) -> None:
        """Fold the values of a finished training in another way."""
        source, folder = self.model_folder(relative), self.model_folder(label)
        own, other = (self.recipe.objectives[x] for x in (label, relative))
        config = own.critic_config
        assert config is not None, "what is folded is a critic's"

        def work() -> dict[str, Any]:
            model = language_model.load(source, weights=self.groundwork.student_weights)
            critic = load_critic(source, config).to(model.device)
            if other.folding is not None:
                unfold(model, critic, other.folding)
            if own.folding is not None:
                fold(model, critic, own.folding, self.groundwork.collect_rows(own.rows))
            with replacing_folder(folder) as partial:
                language_model.save(model, partial)
                critic.keep(partial)
            trained = self.stages.records({relative: self.keys[relative]})[relative]
            return trained | {"folded_from": relative, "parameters": model.num_parameters}

        self.stages.run(label, self.keys[label], files_of_model(folder), work)

    def _tracked_as(self, label: str) -> str:
        """What trackers call a training."""
        return f"{label}-seed-{self.number}" if self.number else label

    def _source_for(self, objective: Objective) -> EvidenceSource | None:
        # The teacher's sets are also what diagnostics are measured on, where there are any.
        if objective.rows == "teacher":
            return CachedTeacher(self.groundwork.open_cache("train"))
        wanted = objective.needs_sets or objective.uses_student_rows
        return self.groundwork.load_live_teacher() if wanted else None  # references: in no cache
