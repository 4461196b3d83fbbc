"""What a run amounts to: one typed result, the content of ``metrics.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from tdistill.errors import DataError
from tdistill.files import write_atomically
from tdistill.plain_json import BadJSON, read_json_object

FORMAT = 3
_LARGEST = 1 << 32  # bytes: responses may be in it
TEACHER = "teacher"
START = "start"
TUNED = "tuned"
SAMPLED = "sample"  # the decoding that a tuned temperature is held against


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95% interval over prompts and training seeds, and the mean of each seed."""

    mean: float
    low: float | None = None
    high: float | None = None
    seeds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse bounds that are the wrong way round."""
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"expected low <= high, found {self.low} and {self.high}")

    @property
    def half_width(self) -> float | None:
        """Half of ``high - low``; None where the data could give no interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def __neg__(self) -> Estimate:
        """The same difference, taken the other way round."""
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return Estimate(-self.mean, low, high, [-mean for mean in self.seeds])


Estimates = dict[str, Estimate | None]
"""By metric; None where it could not be measured, as Rouge-L without references."""


@dataclass(frozen=True)
class Score:
    """The metrics of one model in one decoding; ``seeds`` are those of generation."""

    model: str
    decoding: str
    temperature: float | None  # None where training seeds were tuned to different ones
    sampling_top_p: float | None
    seeds: int
    prompts: int
    metrics: Estimates


@dataclass(frozen=True)
class Imitation:
    """The metrics of one model on held-out teacher responses."""

    model: str
    metrics: Estimates


@dataclass(frozen=True)
class Difference:
    """One model less another on the same prompts and seeds, where both were measured.

    ``decoding`` is None on teacher responses. What was decoded at a tuned temperature is held
    against the other's tuned temperature, or its plain samples if it has none.
    """

    model: str
    less: str
    decoding: str | None
    metrics: Estimates


@dataclass(frozen=True)
class SweepPoint:
    """One model sampled at one temperature: metrics, entropy, and measures of diversity.

    Those of all responses together, such as ``bigram_entropy``, have no interval.
    """

    temperature: float
    metrics: Estimates


@dataclass(frozen=True)
class Matched:
    """An objective less the baseline where both have the same entropy, or the same diversity.

    ``metrics`` are their qualities, with intervals at 1 - 0.05 / ``comparisons``; None where a
    curve does not reach the ``level`` of the ``variable``.
    """

    model: str
    variable: str
    level: float
    comparisons: int
    metrics: Estimates


@dataclass(frozen=True)
class Described:
    """An objective in words."""

    name: str
    family: str
    minimises: str


@dataclass(frozen=True)
class Seconds:
    """Wall-clock time: of what all models share, and of each model, mean over training seeds."""

    groundwork: dict[str, float]
    train: dict[str, float]
    evaluate: dict[str, float]


Columns = dict[str, list[float | None]]
"""What was logged, by name; ``step`` is one of them."""


@dataclass(frozen=True)
class Curve:
    """A training curve: its mean over seeds, and each seed."""

    mean: Columns
    seeds: list[Columns]


@dataclass(frozen=True)
class PromptResponses:
    """One prompt and its responses by model label, of the first training seed."""

    prompt: str
    responses: dict[str, str]


@dataclass(frozen=True)
class Trace:
    """Implied reward (4.1) and soft value (3.2), in nats, at each token of one response.

    An entry is None where the step has none, as at the end of a response that was cut.
    """

    prompt: str
    model: str
    tokens: list[str]
    implied_reward: list[float | None]
    value: list[float | None]

    def __post_init__(self) -> None:
        """Refuse lists of different lengths."""
        lengths = len(self.tokens), len(self.implied_reward), len(self.value)
        if len(set(lengths)) > 1:
            raise ValueError(f"expected as many rewards and values as tokens, found {lengths}")


class MemberValue(TypedDict):
    """A member of a set: both probabilities on the set; the cost to go less its mean, in nats."""

    token: str
    teacher: float
    student: float
    cost: float


class StepValues(TypedDict):
    """A step of a response: how many nats the student spares itself there, and what it chose of."""

    step: int
    spared: float
    members: list[MemberValue]


@dataclass(frozen=True)
class ValueTrace:
    """One response of the teacher and its steps at which a student departs from it most."""

    prompt: str
    model: str
    tokens: list[str]
    steps: list[StepValues]


class Histogram(TypedDict):
    """Counts between edges; one more edge than counts."""

    edges: list[float]
    counts: list[float]


class Bound(TypedDict):
    """The bound (3.3) next to kappa of Prop 2 at one set threshold, in nats."""

    set_top_p: float
    mean_size: float
    median_size: float
    bound: float
    bound_as_cached: float
    bound_stationary: float
    kappa: float


class Inspection(TypedDict):
    """The inspection of the teacher cache: what is drawn of it; it holds more facts than these."""

    set_size: dict[str, float]
    set_size_histogram: Histogram
    bounds: list[Bound]


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        recipe: all of it, as plain values.
        distilled: the objective whose student is the run's.
        baseline: the objective that the others are compared with.
        seeds: random seeds by use; ``training`` and ``start`` have one a training seed.
        parameters: of every model.
        objectives: those in the result, in the recipe's order.
        failed: why, by label and seed, for those left out.
        temperatures: the tuned one of every training seed, of the models that have one.
        differences: of every model to the distilled one and to the baseline.
        warnings: what went wrong in training without ending it, by label and seed.
        layers: which of the teacher's the student began with, and why; empty for a checkpoint.
        sweep: every model at every temperature, the lowest first; empty where none was asked for.
        matched: differences to the baseline at the same values of each variable.
        absent: why, by measure, for those that this teacher could not be asked for.
    """

    format: int
    created: str
    versions: dict[str, str]
    recipe: dict[str, Any]
    distilled: str
    baseline: str
    seeds: dict[str, Any]
    counts: dict[str, int]
    parameters: dict[str, int]
    seconds: Seconds
    objectives: dict[str, Described]
    failed: dict[str, str]
    temperatures: dict[str, list[float]]
    scores: list[Score]
    imitation: list[Imitation]
    differences: list[Difference]
    sweep: dict[str, list[SweepPoint]]
    matched: list[Matched]
    cache: Inspection
    curves: dict[str, Curve]
    samples: list[PromptResponses]
    reward_traces: list[Trace]
    value_traces: list[ValueTrace]
    layers: dict[str, Any] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Teacher, start and objectives."""
        return [TEACHER, START, *self.objectives]

    @property
    def decodings(self) -> list[str]:
        """The shared decodings, as they come; a tuned temperature is none of them."""
        return list(dict.fromkeys(s.decoding for s in self.scores if s.decoding != TUNED))

    def score(self, model: str, decoding: str) -> Score | None:
        """The score of a model in a decoding, or None."""
        found = (s for s in self.scores if (s.model, s.decoding) == (model, decoding))
        return next(found, None)

    def estimate(self, model: str, metric: str, decoding: str | None) -> Estimate | None:
        """One estimate; ``decoding`` None reads what was measured on teacher responses."""
        if decoding is None:
            found = next((i for i in self.imitation if i.model == model), None)
        else:
            found = self.score(model, decoding)
        return found.metrics.get(metric) if found else None

    def difference(
        self, model: str, less: str, metric: str, decoding: str | None
    ) -> Estimate | None:
        """One paired difference; None where it was not measured."""
        wanted = (model, less, decoding)
        found = (d for d in self.differences if (d.model, d.less, d.decoding) == wanted)
        return next((d.metrics.get(metric) for d in found), None)


def write_result(result: Result, path: Path) -> None:
    """Write ``metrics.json``."""
    text = json.dumps(asdict(result), indent=1, allow_nan=False)
    write_atomically(path, text)


def read_result(path: Path) -> Result:
    """Read ``metrics.json``.

    Raises:
        DataError: it is damaged, or of another format; the text says where.
    """
    try:
        plain = read_json_object(Path(path), most=_LARGEST)
    except (OSError, BadJSON) as error:
        found = "none there" if isinstance(error, OSError) else error
        raise _unusable(f"{path}: expected a metrics.json, found {found}") from error
    return result_of(plain, str(path))


def result_of(plain: Any, where: str = "metrics.json") -> Result:
    """The result from plain values.

    Args:
        plain: the parsed file.
        where: what to call it in an error.

    Raises:
        DataError: a part is missing or of the wrong form; the text gives its path.
    """
    import cattrs

    found = plain.get("format") if isinstance(plain, Mapping) else type(plain).__name__
    if found != FORMAT:
        raise _unusable(f"{where}: expected an object of format {FORMAT}, found {found}")
    try:
        return _converter().structure(plain, Result)
    except cattrs.BaseValidationError as error:
        problems = cattrs.transform_error(error, format_exception=_in_words)
        raise _unusable(f"{where}: " + "; ".join(problems[:3])) from error


def _unusable(problem: str) -> DataError:
    return DataError(f"{problem}. Take a metrics.json that `tdistill run` of this version wrote.")


def _in_words(error: BaseException, _: Any) -> str:
    if isinstance(error, KeyError):
        return "expected it, found nothing"
    text = str(error)
    return text if text.startswith("expected") else f"expected another form ({text})"


def _converter() -> Any:
    """JSON's own types are taken as they are: no text becomes a number."""
    import cattrs

    def exactly(name: str, *kinds: type) -> Any:
        def take(value: Any, _: Any) -> Any:
            infinite = isinstance(value, float) and not math.isfinite(value)
            if type(value) not in kinds or infinite:
                raise TypeError(f"expected {name}, found {json.dumps(value)[:60]}")
            return value

        return take

    converter = cattrs.Converter()
    converter.register_structure_hook(str, exactly("text", str))
    converter.register_structure_hook(int, exactly("a whole number", int))
    converter.register_structure_hook(float, exactly("a number", int, float))
    return converter
