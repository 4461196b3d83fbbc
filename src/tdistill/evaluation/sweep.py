"""A model at several temperatures: what quality costs in entropy and in diversity."""

from __future__ import annotations

from typing import Any

import numpy as np

from tdistill.evaluation.diversity import distinct_responses, diversity, words_of
from tdistill.evaluation.evaluate import Exam
from tdistill.evaluation.intervals import Sample
from tdistill.evaluation.places import is_of_place
from tdistill.evaluation.responses import Responses, text_of
from tdistill.evaluation.served import AnyModel
from tdistill.models.decoding import Decoding
from tdistill.progress import Progress


def sweep(label: str, model: AnyModel, exam: Exam) -> list[dict[str, Any]]:
    """A model sampled at each temperature on the test prompts; nothing where none is configured.

    Args:
        label: name of its row.
        model: the model.
        exam: what it is judged on.

    Returns:
        A record a temperature: ``temperature``; ``per_prompt``, the samples behind the metrics of
        `score_responses` and ``distinct_responses`` (a share of those to one prompt, with several
        seeds); ``together``, the diversity of all responses.
    """
    config = exam.config.sweep
    if config is None:
        return []
    total = len(config.temperatures) * config.seeds * len(exam.test)
    bar = Progress(f"sweep {label}", total, "responses")
    points = []
    for temperature in config.temperatures:

        def show(done: int, temperature: float = temperature) -> None:
            bar.advance(done, f"T = {temperature:g}")

        decoding = Decoding(temperature=temperature)
        made = exam.ask(model, decoding, seeds=config.seeds, on_batch=show)
        points.append({"temperature": temperature, **_measured(made, model, exam)})
    bar.close()
    return points


def _measured(made: Responses, model: AnyModel, exam: Exam) -> dict[str, Any]:
    metrics = exam.score(made, model)
    words = [[words_of(text_of(model, r)) for r in round_] for round_ in made.responses]
    if len(words) > 1:
        shares = [distinct_responses(of_prompt) for of_prompt in zip(*words, strict=True)]
        metrics["distinct_responses"] = Sample(np.asarray(shares))
    return {
        "per_prompt": {
            name: sample.to_dict()
            for name, sample in metrics.items()
            if sample is not None and not is_of_place(name)
        },
        "together": diversity([response for round_ in words for response in round_]),
    }
