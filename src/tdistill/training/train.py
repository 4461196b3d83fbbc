"""One training run from a start to a finished student: adapters, resume, history."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from tdistill.errors import InvalidValueError
from tdistill.evidence.collator import Collator
from tdistill.evidence.evidence import EvidenceSource
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.processes import is_first_process, of_first
from tdistill.progress import Progress, emit
from tdistill.teacher.source import LiveTeacher
from tdistill.training.arguments import training_arguments
from tdistill.training.config import LoraConfig, TrainConfig
from tdistill.training.divergence import refuse_non_finite_weights, signs_of_failure
from tdistill.training.folding import fold, head_scale
from tdistill.training.likelihood_filter import LikelihoodFilter, likelihood_filter
from tdistill.training.mixing import EvidenceMix, StudentSampler
from tdistill.training.objectives import Objective
from tdistill.training.replay import BufferedSource
from tdistill.training.sharded import (
    is_sharded,
    whole_models_again,
    with_weights_of,
    without_weights,
)
from tdistill.training.tracking import tracked
from tdistill.training.trainer import DistillTrainer, RowDataset

History = list[dict[str, float]]


def train_student(
    student: LanguageModel,
    objective: Objective,
    rows: Sequence[Row],
    config: TrainConfig,
    *,
    checkpoints: Path,
    vocabulary_size: int,
    source: EvidenceSource | None = None,
    live_teacher: LiveTeacher | None = None,
    references: Sequence[Row] = (),
    text: Sequence[tuple[int, ...]] = (),
    label: str | None = None,
    logs: Path | None = None,
    critic_folder: Path | None = None,
) -> tuple[LanguageModel, History]:
    """Train a student; continues from the newest whole checkpoint, as if never interrupted.

    All processes of a launched run call it with the same arguments, on however many the
    checkpoint was written.

    Args:
        student: the start; trained in place.
        objective: what is minimised.
        rows: responses to train on.
        config: settings.
        checkpoints: folder of this run's checkpoints; remove it once the result is saved.
        vocabulary_size: tokens shared by teacher and student.
        source: the teacher's evidence of the rows, where the objective needs sets.
        live_teacher: the teacher, where the objective needs its full distribution, or where it
            scores the student's own responses.
        references: ground-truth responses whose evidence ``source`` has, for a reference share.
        text: chunks of plain text for the language-model stream.
        label: what the progress line calls the run; the objective's name by default.
        logs: folder of the files that trackers write, whose name is what they call the run; None:
            that of the label in ``tracking`` beside the checkpoints.
        critic_folder: where the critic of the finished student goes; None: it is not kept.

    Returns:
        The trained student (adapters merged) and what was logged at each logging step.

    Raises:
        InvalidValueError: if there are no rows, or the objective lacks evidence that it needs.
        DivergenceError: if a loss, a gradient or a weight is not finite.
    """
    _check_evidence(objective, rows, source, live_teacher, references)
    if objective.folding is not None:
        head_scale(student.model)
    arguments = training_arguments(config, checkpoints)  # which joins the processes
    model: Any = (
        student.model if config.lora is None else _with_adapters(student.model, config.lora)
    )
    frozen = list(model.get_input_embeddings().parameters()) if config.freeze_embeddings else []
    frozen = [weight.requires_grad_(False) for weight in frozen if weight.requires_grad]
    trained = LanguageModel(model, student.tokenizer, student.name)
    likelier = likelihood_filter(trained, objective, config, vocabulary_size)
    if likelier is not None and objective.keep_when == "start":
        rows, likelier = likelier.best_of_prompts(rows), None
    mix = _evidence_mix(
        trained,
        objective,
        rows,
        config,
        live_teacher=live_teacher,
        references=references,
        likelier=likelier,
    )
    if mix is not None and mix.sampler is not None and source is not None:
        source = BufferedSource(mix.buffer, source)
    collator = Collator(
        source,
        student.pad_id,
        set_top_p=objective.set_top_p,
        min_gain=objective.min_gain,
        out_of_set=objective.out_of_set,
        discount=objective.discount,
        padding_side=config.padding_side,
        text=text,
        share_prefix=config.share_prefix,
        tokens_per_forward=config.tokens_per_forward,
    )
    label = label or objective.name
    progress = _ShowProgress(label)
    trainer = DistillTrainer(
        model,
        objective=objective,
        config=config,
        vocabulary_size=vocabulary_size,
        live_teacher=live_teacher,
        mix=mix,
        args=arguments,
        train_dataset=RowDataset(rows),
        data_collator=collator,
        callbacks=[progress, _NoLastCheckpoint()],
    )
    trainer.remove_callback(PrinterCallback)  # the progress line is enough
    empty = without_weights(model) if is_sharded(trainer) else None
    try:
        newest = of_first(lambda: newest_checkpoint(checkpoints))
        with tracked(trainer, logs or checkpoints.parent / "tracking" / label):
            trainer.train(resume_from_checkpoint=newest)
    finally:
        progress.close()
        whole_models_again()
    refuse_non_finite_weights(objective.name, trainer.state.global_step, model)
    if empty is not None:
        model = with_weights_of(empty, trainer)
        if is_first_process():  # ZeRO-3 shows weights only when they are gathered
            refuse_non_finite_weights(objective.name, trainer.state.global_step, model)
    if frozen:
        model.get_input_embeddings().requires_grad_(True)
    if config.lora is not None:
        model = model.merge_and_unload()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    finished = LanguageModel(model.eval(), student.tokenizer, student.name)
    whole = empty is None or is_first_process()  # of a student in shards the others have none
    learner = trainer.beside.critic
    if learner is not None and objective.folding is not None and whole:
        fold(finished, learner.critic, objective.folding, rows)
    if learner is not None and critic_folder is not None:
        learner.critic.keep(critic_folder)
    return finished, history


def _evidence_mix(
    student: LanguageModel,
    objective: Objective,
    rows: Sequence[Row],
    config: TrainConfig,
    *,
    live_teacher: LiveTeacher | None,
    references: Sequence[Row],
    likelier: LikelihoodFilter | None,
) -> EvidenceMix | None:
    """Whose rows batches hold, where that is not only the data's."""
    as_drawn = not objective.uses_student_rows and objective.reference_share == 0.0
    if as_drawn and likelier is None:
        return None
    sampler = None
    if objective.uses_student_rows:
        assert live_teacher is not None, "checked before"
        sampler = StudentSampler(student, live_teacher, config.replay, objective.teacher_mix)
    return EvidenceMix(
        objective,
        steps=config.steps,
        rows=rows,
        sampler=sampler,
        references=references,
        config=config.replay,
        seed=config.seed,
        likelier=likelier,
    )


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written whole; incomplete ones are removed.

    The Trainer writes ``trainer_state.json`` last, so a checkpoint without it was cut short.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path)
            continue
        return str(path)
    return None


def _with_adapters(model: Any, lora: LoraConfig) -> Any:
    try:
        from peft import LoraConfig as PeftLoraConfig
        from peft import get_peft_model
    except ImportError as error:
        raise InvalidValueError(
            "training.lora: expected the package peft to be installed, found none; "
            "pip install 'tdistill[peft]'"
        ) from error
    adapters = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapters)


def _check_evidence(
    objective: Objective,
    rows: Sequence[Row],
    source: EvidenceSource | None,
    live_teacher: LiveTeacher | None,
    references: Sequence[Row],
) -> None:
    if not rows:
        raise InvalidValueError(
            f"{objective.name}: expected responses to train on ({objective.rows}), found none"
        )
    if objective.needs_sets and source is None:
        raise InvalidValueError(
            f"{objective.name}: needs the teacher's top-p sets; give a source of evidence"
        )
    if objective.uses_student_rows and live_teacher is None:
        raise InvalidValueError(
            f"{objective.name}: student_share = {objective.student_share} needs the teacher in "
            "memory to score the student's responses; give live_teacher, or set student_share 0"
        )
    if objective.uses_student_rows and source is None:
        raise InvalidValueError(
            f"{objective.name}: a student share needs the teacher's sets; give a source of evidence"
        )
    if objective.reference_share > 0.0 and not references:
        raise InvalidValueError(
            f"{objective.name}: reference_share = {objective.reference_share} needs ground-truth "
            "responses with evidence, found none; give references, or set reference_share 0"
        )
    if objective.tolerated_gap is not None:
        raise InvalidValueError(
            f"{objective.name}: expected a set_top_p or a min_gain, found a tolerated_gap of "
            f"{objective.tolerated_gap}; resolve it with training.tolerated_gap.resolve_gap"
        )
    if objective.needs_live_teacher and live_teacher is None:
        raise InvalidValueError(
            f"{objective.name}: needs the teacher in memory; give live_teacher, or choose a "
            "form of the objective that reads the cache"
        )


class _NoLastCheckpoint(TrainerCallback):
    """No checkpoint after the last update: resumed from it, the Trainer takes one update more."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False


class _ShowProgress(TrainerCallback):
    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Progress | None = None
        self.noted = ""
        self.logged: History = []
        self.warned: set[str] = set()  # quantities

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if is_first_process():
            done = state.global_step
            self.bar = Progress(f"train {self.label}", state.max_steps, "updates", done=done)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step, self.noted)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if self.bar is not None and "loss" in logs:
            self.noted = f"loss {logs['loss']:.3f}"
            emit("log", what=f"train {self.label}", step=state.global_step, **logs)
            if "replay_rows" in logs:
                rows, size = int(logs["replay_rows"]), logs["replay_mib"]
                held = f"replay {rows} rows, {size:.1f} MiB, age {logs['replay_age']:.1f}"
                self.noted = f"{self.noted}, {held}"
            self.bar.update(state.global_step, self.noted)
            self._warn(state.log_history)

    def _warn(self, log_history: Sequence[Any]) -> None:
        """Say once of each quantity that it goes wrong."""
        self.logged += log_history[len(self.logged) :]
        for sign in signs_of_failure(self.logged):
            quantity, _, _ = sign.partition(":")
            if quantity not in self.warned and self.bar is not None:
                self.warned.add(quantity)
                self.bar.note(f"{self.label}: {sign}")

    def close(self) -> None:
        """End the bar, whatever became of training."""
        if self.bar is not None:
            self.bar.close()
