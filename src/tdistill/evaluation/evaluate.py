"""Judging one model: every decoding, seeds, imitation of the teacher, sample responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tdistill.data.examples import Example
from tdistill.evaluation.config import EvaluationConfig
from tdistill.evaluation.imitation import HeldOut, exposure_bias, imitation
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.responses import (
    Responses,
    pass_metrics,
    quality,
    respond,
    score_responses,
    text_of,
)
from tdistill.evaluation.served import AnyModel, ServedTeacher
from tdistill.evaluation.tasks import judge_by_tasks
from tdistill.evaluation.verifier import Verifier, load_verifier
from tdistill.models.decoding import Decoding
from tdistill.progress import Progress

TEACHER_RESPONSES = ""
"""The key, among decodings, of what is measured on held-out teacher responses."""


@dataclass(frozen=True, eq=False)
class Exam:
    """What every model is judged on.

    Attributes:
        teacher: whose likelihood is reported; at hand or served.
        test: prompts never seen in training, with references.
        valid: prompts on which a temperature may be chosen; never the test prompts.
        held_out: teacher responses to the test prompts.
        config: decodings, seeds, lengths.
        vocabulary_size: tokens shared by all.
    """

    teacher: AnyModel
    test: Sequence[Example]
    valid: Sequence[Example]
    held_out: HeldOut
    config: EvaluationConfig
    vocabulary_size: int

    @property
    def verifier(self) -> Verifier | None:
        """Says which responses are right, where the config names one."""
        return None if self.config.verify is None else load_verifier(self.config.verify)

    def ask(
        self,
        model: AnyModel,
        decoding: Decoding,
        *,
        seeds: int,
        on_batch: Callable[[int], None],
    ) -> Responses:
        """A model's responses to the test prompts; ``on_batch`` hears how many were made."""
        return respond(
            model,
            [example.prompt_ids for example in self.test],
            decoding,
            seeds=seeds,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            on_batch=on_batch,
        )

    def score(self, made: Responses, model: AnyModel) -> dict[str, Sample | None]:
        """The metrics of :func:`score_responses` of what a model was asked."""
        return score_responses(
            made,
            self.test,
            model,
            self.teacher,
            vocabulary_size=self.vocabulary_size,
            batch_size=self.config.batch_size,
            verifier=self.verifier,
        )


def judge(label: str, model: AnyModel, exam: Exam) -> dict[str, Any]:
    """All numbers of one model, as plain values.

    Args:
        label: name of its row in the table.
        model: the model.
        exam: what it is judged on.

    Returns:
        ``scores`` (a record per decoding), ``imitation`` and ``samples``, as in ``metrics.json``;
        ``per_prompt``: the samples behind each metric, by decoding and on teacher responses.
    """
    config = exam.config
    decodings = dict(config.decodings)
    if label in config.tuned_models and exam.valid and config.tuned_temperatures:
        decodings["tuned"] = Decoding(temperature=tuned_temperature(label, model, exam))
    total = sum(1 if d.greedy else config.seeds for d in decodings.values()) * len(exam.test)
    bar = Progress(f"evaluate {label}", total, "responses")
    imitated = imitation(model, exam.held_out)
    if not isinstance(model, ServedTeacher):  # the harness reads weights
        imitated |= judge_by_tasks(model, config)
    scores, samples, per_prompt = [], [], {}
    for name, decoding in decodings.items():

        def show(done: int, name: str = name) -> None:
            bar.advance(done, name)

        made = exam.ask(model, decoding, seeds=config.seeds, on_batch=show)
        metrics = _measure(made, model, exam, imitated.get("forward_kl"))
        if decoding.greedy or not samples:
            samples = [text_of(model, r) for r in made.responses[0][: config.samples]]
        per_prompt[name] = _samples(metrics)
        scores.append(
            {
                "model": label,
                "decoding": name,
                "temperature": 0.0 if decoding.greedy else decoding.temperature,
                "sampling_top_p": decoding.sampling_top_p,
                "seeds": len(made.responses),
                "prompts": len(exam.test),
                "metrics": _plain(metrics),
            }
        )
    bar.close()
    own = {"model": label, "metrics": {"forward_kl": None} | _plain(imitated)}
    per_prompt[TEACHER_RESPONSES] = _samples(imitated)
    return {"scores": scores, "imitation": own, "samples": samples, "per_prompt": per_prompt}


def _measure(
    made: Responses, model: AnyModel, exam: Exam, on_teacher: Sample | None
) -> dict[str, Sample | None]:
    """All metrics of some responses; ``on_teacher`` is the forward KL on the teacher's."""
    found = exam.score(made, model)
    verdicts = None if exam.verifier is None else found[exam.verifier.metric]
    if verdicts is not None and not made.decoding.greedy:
        found |= pass_metrics(verdicts, exam.config.pass_k)
    own, bias = found["own_forward_kl"], None
    if own is not None and on_teacher is not None:
        bias = exposure_bias(own, exam.test, on_teacher, exam.held_out)
    return found | {"exposure_bias": bias}


def tuned_temperature(label: str, model: AnyModel, exam: Exam) -> float:
    """The temperature with the best responses to the validation prompts: see `quality`."""
    config, best = exam.config, (float("-inf"), 1.0)
    rounds = len(config.tuned_temperatures) * config.seeds
    bar = Progress(f"tune {label}", rounds * len(exam.valid), "responses")
    for temperature in config.tuned_temperatures:

        def show(done: int, temperature: float = temperature) -> None:
            bar.advance(done, f"T = {temperature:g}")

        made = respond(
            model,
            [example.prompt_ids for example in exam.valid],
            Decoding(temperature=temperature),
            seeds=config.seeds,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            on_batch=show,
        )
        found = quality(made, exam.valid, model, exam.verifier)
        if found is not None:
            best = max(best, (found.mean, temperature))
    bar.close()
    return best[1]


def _plain(metrics: Mapping[str, Sample | None]) -> dict[str, Any]:
    return {n: None if m is None else m.interval().to_dict() for n, m in metrics.items()}


def _samples(metrics: Mapping[str, Sample | None]) -> dict[str, Any]:
    return {n: m.to_dict() for n, m in metrics.items() if m is not None}
