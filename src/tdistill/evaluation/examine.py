"""All that is measured of one model: decodings, imitation, and the sweep over temperatures."""

from __future__ import annotations

from typing import Any

from tdistill.evaluation import evaluate
from tdistill.evaluation.evaluate import Exam
from tdistill.evaluation.served import AnyModel
from tdistill.evaluation.sweep import sweep


def examine(label: str, model: AnyModel, exam: Exam) -> dict[str, Any]:
    """The record of a model that the result is made of, as plain values.

    Args:
        label: name of its row.
        model: the model.
        exam: what it is judged on.

    Returns:
        That of :func:`tdistill.evaluation.evaluate.judge`, with ``sweep`` and ``parameters``.
    """
    own = {"sweep": sweep(label, model, exam), "parameters": model.num_parameters}
    return evaluate.judge(label, model, exam) | own
