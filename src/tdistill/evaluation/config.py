"""Settings of an evaluation; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from tdistill.checks import check, check_at_least
from tdistill.evaluation.verifier import load_verifier
from tdistill.models.decoding import Decoding

HIGHER, LOWER = "task:", "task, lower is better:"
"""What the names of metrics of tasks begin with."""


def _three_decodings() -> dict[str, Decoding]:
    return {
        "greedy": Decoding(greedy=True),
        "sample": Decoding(),
        "nucleus": Decoding(sampling_top_p=0.8),
    }


@dataclass(frozen=True)
class SweepConfig:
    """Every model at several temperatures: quality against entropy and against diversity."""

    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)  # the lowest first
    seeds: int = 2  # generation seeds of each; of one, responses to a prompt are not compared
    levels: int = 4  # values of entropy and of diversity at which models are compared

    def __post_init__(self) -> None:
        """Refuse what makes no curve."""
        check_at_least(1, seeds=self.seeds, levels=self.levels)
        rising = (0.0, *self.temperatures)
        usable = len(rising) > 2 and all(a < b for a, b in pairwise(rising))
        expected = "at least two, above 0, each above the one before"
        check("temperatures", usable, expected, list(self.temperatures))


@dataclass(frozen=True)
class EvaluationConfig:
    """How models are compared on prompts never seen in training."""

    decodings: dict[str, Decoding] = field(default_factory=_three_decodings)
    verify: str | None = None  # right responses: exact (as a reference), FILE.py:FUNCTION, or null
    pass_k: tuple[int, ...] = (1, 5)  # with verify: pass@k of these; those above seeds are left out
    seeds: int = 5  # generation seeds of every decoding that samples
    max_new_tokens: int = 256
    batch_size: int = 32
    tf32: bool = False  # float32 models on CUDA multiply in TF32: faster, .01 nats less exact
    rollouts_per_prompt: int = 1  # held-out teacher rollouts for the forward KL
    # Who has the teacher: as teacher.backend says, or transformers in this process (local), which
    # also gives what a list of likeliest tokens cannot.
    teacher: Literal["auto", "local"] = "auto"
    set_top_p: float = 0.8  # set off which mass counts as leak
    tuned_models: tuple[str, ...] = ("start",)  # rows that also get their best temperature
    tuned_temperatures: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0)  # chosen from, on data.valid
    sweep: SweepConfig | None = None  # every model at several temperatures; null: not done
    tasks: tuple[str, ...] = ()  # of lm-evaluation-harness: names, or .yaml files of tasks
    task_limit: int | None = None  # only so many documents of each task
    task_chat: bool = False  # put their prompts into the tokenizer's chat template
    samples: int = 50  # prompts whose responses the page has side by side

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(
            1,
            seeds=self.seeds,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            rollouts_per_prompt=self.rollouts_per_prompt,
            task_limit=self.task_limit,
        )
        check_at_least(0, samples=self.samples)
        check("decodings", bool(self.decodings), "at least one decoding", "none")
        for k in self.pass_k:
            check_at_least(1, pass_k=k)
        if self.verify is not None:
            load_verifier(self.verify)
        for temperature in self.tuned_temperatures:
            check("tuned_temperatures", temperature > 0, "values above 0", temperature)
