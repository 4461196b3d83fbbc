"""Tasks of lm-evaluation-harness, scored by its own Python interface: an optional extra.

A task is named, or its file is: what it downloads, and the code that it names, are its own affair.
"""

from __future__ import annotations

import copy
import io
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from tdistill.errors import InvalidValueError, one_line
from tdistill.evaluation.config import HIGHER, LOWER, EvaluationConfig
from tdistill.evaluation.intervals import Sample
from tdistill.models.language_model import LanguageModel

_NOT_METRICS = ("alias", "name", "sample_len", "sample_count")
_CLOSE = 1e-6  # of a mean over documents to what the harness says


def check_tasks(config: EvaluationConfig) -> str:
    """Refuse tasks that cannot be loaded, before any work is spent; says what was found.

    Raises:
        InvalidValueError: the package is not installed, or a task is not known, or its data are
            not there.
    """
    if find_spec("lm_eval") is None:
        raise InvalidValueError(
            "evaluation.tasks: expected the package lm-eval to be installed, found none; "
            "pip install 'tdistill[tasks]'"
        )
    with _in_silence():
        tasks = _load(config.tasks)
    return ", ".join(f"{name} ({len(task.eval_docs)} documents)" for name, task in tasks.items())


def judge_by_tasks(model: LanguageModel, config: EvaluationConfig) -> dict[str, Sample]:
    """Scores of a model in the tasks of a recipe, a value for each document.

    Args:
        model: the model.
        config: ``tasks``, ``task_limit``, ``task_chat`` and the batch size.

    Returns:
        By ``task:NAME METRIC``; metrics that are no means over documents have no interval, and are
        one value.

    Raises:
        InvalidValueError: the harness cannot score the model; it says why.
    """
    if not config.tasks:
        return {}
    with _in_silence(), _keeping_random_state():
        harness = import_module("lm_eval")
        network = import_module("lm_eval.models.huggingface").HFLM(
            pretrained=model.model,
            tokenizer=copy.deepcopy(model.tokenizer),  # it is given a padding token
            batch_size=config.batch_size,
        )
        try:
            found = harness.simple_evaluate(
                network,
                tasks=list(_load(config.tasks).values()),
                task_manager=_manager(config.tasks),
                limit=config.task_limit,
                apply_chat_template=config.task_chat,
                bootstrap_iters=0,  # the intervals are ours, paired ones too
            )
        except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise _refused(config.tasks, error) from error
    return {
        name: sample
        for task, scores in found["results"].items()
        for name, sample in _samples(task, scores, found).items()
    }


def _load(tasks: Sequence[str]) -> dict[str, Any]:
    try:
        return dict(_manager(tasks).load(list(tasks))["tasks"])
    except Exception as error:  # of its YAML, of `datasets`, of code that a task names
        raise _refused(tasks, error) from error


def _manager(tasks: Sequence[str]) -> Any:
    """What finds tasks: in files alone, or among all those that the harness brings."""
    return _index(all(task.endswith(".yaml") for task in tasks))


@lru_cache
def _index(files_alone: bool) -> Any:
    """Made once: to read all tasks of the harness takes seconds."""
    return import_module("lm_eval.tasks").TaskManager(include_defaults=not files_alone)


def _refused(tasks: Sequence[str], error: Exception) -> InvalidValueError:
    return InvalidValueError(
        f"evaluation.tasks: expected tasks of lm-evaluation-harness by name, or files of tasks, "
        f"that can be scored here, found {', '.join(tasks)}: {one_line(error)}"
    )


def _samples(task: str, scores: Mapping[str, Any], found: Any) -> dict[str, Sample]:
    """The metrics of a task, which the harness calls METRIC,FILTER."""
    samples = {}
    rows = sorted(found["samples"].get(task, ()), key=lambda row: row["doc_id"])
    better = found.get("higher_is_better", {}).get(task, {})
    for key, value in scores.items():
        metric, _, kept = key.partition(",")
        if key in _NOT_METRICS or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        start = LOWER if better.get(metric) is False else HIGHER
        name = f"{start}{task} {metric}" + (f" ({kept})" if kept not in ("none", "") else "")
        mine = [row for row in rows if row.get("filter", kept) == kept]
        samples[name] = _of_documents(mine, metric, float(value))
    return samples


def _of_documents(rows: Sequence[Mapping[str, Any]], metric: str, value: float) -> Sample:
    """A value for each document, if their mean is what the harness says; else only that."""
    values = [row.get(metric) for row in rows]
    plain = [float(v) for v in values if isinstance(v, int | float | np.number)]
    if len(plain) == len(values) > 0 and abs(float(np.mean(plain)) - value) < _CLOSE:
        return Sample(np.asarray(plain))
    return Sample(np.asarray([value]))


@contextmanager
def _in_silence() -> Iterator[None]:
    """Without the bars, notes and warnings of the harness; our own progress is enough."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def _keeping_random_state() -> Iterator[None]:
    """The harness seeds everything; what comes after it must not depend on that."""
    state, numbers, drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
        torch.set_rng_state(drawn)
