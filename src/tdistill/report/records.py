"""Typed reading of ``metrics.json``: everything the report draws, checked once, at the door.

Only ``format`` is required. A part that is absent or null is simply not drawn; a part that is there
and has the wrong form is refused with its path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from tdistill.errors import DataError

FORMAT = 1
TEACHER = "teacher"
START = "start"

_T = TypeVar("_T")
_Number = (int, float)


@dataclass(frozen=True)
class Estimate:
    """A mean and, where it was measured, its interval (same unit as the mean)."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half of ``high - low``; None where no finite interval was recorded."""
        if self.low is None or self.high is None:
            return None
        half = (self.high - self.low) / 2
        return half if math.isfinite(half) else None

    @property
    def comparable(self) -> bool:
        """Whether the mean is finite and has an interval to compare by."""
        return math.isfinite(self.mean) and self.half_width is not None


Estimates = dict[str, Estimate | None]


@dataclass(frozen=True)
class Score:
    """The metrics of one model in one decoding."""

    model: str
    decoding: str
    temperature: float | None
    seeds: int | None
    prompts: int | None
    metrics: Estimates


@dataclass(frozen=True)
class Sample:
    """One prompt and its responses by model label."""

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


@dataclass(frozen=True)
class Bound:
    """The bound (3.3) next to kappa of Prop 2 at one set threshold, in nats."""

    set_top_p: float
    mean_size: float | None
    median_size: float | None
    bound: float | None
    bound_stationary: float | None
    kappa: float | None


@dataclass(frozen=True)
class Cache:
    """What the report shows of the teacher cache; ``facts`` is the whole inspection."""

    facts: dict[str, Any]
    edges: list[float]
    counts: list[float]
    bounds: list[Bound]


@dataclass(frozen=True)
class Record:
    """A checked ``metrics.json``."""

    created: str | None = None
    distilled: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, Any] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    imitation: dict[str, Estimates] = field(default_factory=dict)
    cache: Cache | None = None
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Labels with a score, in the order in which the file names them."""
        return list(dict.fromkeys([s.model for s in self.scores] + list(self.imitation)))

    @property
    def baselines(self) -> list[str]:
        """Labels that the distilled student is compared with: all but itself and the teacher."""
        return [m for m in self.models if m not in (TEACHER, self.distilled)]

    def score(self, model: str, decoding: str) -> Score | None:
        """The score of a model in a decoding, or None."""
        found = (s for s in self.scores if s.model == model and s.decoding == decoding)
        return next(found, None)

    def estimate(self, model: str | None, metric: str, decoding: str | None) -> Estimate | None:
        """One estimate; ``decoding`` None reads the imitation metrics."""
        if model is None:
            return None
        if decoding is None:
            return self.imitation.get(model, {}).get(metric)
        score = self.score(model, decoding)
        return score.metrics.get(metric) if score else None

    def parameter_count(self, model: str) -> int | None:
        """Parameters of a model: its own entry, else the student's for all but the teacher."""
        own = self.parameters.get(model)
        return own if own is not None or model == TEACHER else self.parameters.get("student")


def read_record(metrics: Mapping[str, Any]) -> Record:
    """Check a ``metrics.json`` structure and return it typed.

    Args:
        metrics: the parsed file.

    Returns:
        The record.

    Raises:
        DataError: the structure has another format number, or a part has the wrong form; the text
            gives the path of that part.
    """
    whole = _expect(metrics, Mapping, "the whole file", "an object")
    if whole.get("format") != FORMAT:
        raise _wrong("format", f"{FORMAT}", whole.get("format"))
    return Record(
        created=_optional(whole, "created", str, "a string"),
        distilled=_optional(whole, "distilled", str, "a string"),
        **{
            name: dict(_optional(whole, name, Mapping, "an object") or {})
            for name in ("versions", "recipe", "counts", "seconds")
        },
        parameters=_parameters(whole),
        scores=_scores(whole),
        imitation=_imitation(whole),
        cache=_cache(_optional(whole, "cache", Mapping, "an object")),
        curves=_curves(_optional(whole, "curves", Mapping, "an object") or {}),
        samples=_samples(whole),
        traces=_traces(whole),
    )


def _wrong(where: str, expected: str, found: object) -> DataError:
    shown = repr(found)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return DataError(
        f"metrics.json: expected {expected} at {where}, found {shown}. "
        "Write the report from a metrics.json that `tdistill run` of this version left."
    )


def _expect(value: object, kind: type[_T] | tuple[type[_T], ...], where: str, words: str) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _wrong(where, words, value)
    return value


def _optional(part: Mapping[str, Any], key: str, kind: Any, words: str, at: str = "") -> Any:
    value = part.get(key)
    return None if value is None else _expect(value, kind, at + key, words)


def _items(part: Mapping[str, Any], key: str, at: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    items = _optional(part, key, list, "a list", at) or []
    paths = [f"{at}{key}[{i}]" for i in range(len(items))]
    return [(p, _expect(x, Mapping, p, "an object")) for p, x in zip(paths, items, strict=True)]


def _parameters(whole: Mapping[str, Any]) -> dict[str, Any]:
    part = _optional(whole, "parameters", Mapping, "an object") or {}
    return {k: _optional(part, k, _Number, "a number", "parameters.") for k in part}


def _estimates(part: Mapping[str, Any], where: str) -> Estimates:
    metrics = _optional(part, "metrics", Mapping, "an object", f"{where}.") or {}
    return {str(k): _estimate(v, f"{where}.metrics.{k}") for k, v in metrics.items()}


def _estimate(value: object, where: str) -> Estimate | None:
    if value is None:
        return None
    part = _expect(value, Mapping, where, "an object with mean, low and high (or null)")
    mean = _expect(part.get("mean"), _Number, f"{where}.mean", "a number")
    low = _optional(part, "low", _Number, "a number", f"{where}.")
    high = _optional(part, "high", _Number, "a number", f"{where}.")
    if low is not None and high is not None and low > high:
        raise _wrong(where, "low <= high", {"low": low, "high": high})
    return Estimate(mean, low, high)


def _scores(whole: Mapping[str, Any]) -> list[Score]:
    scores: list[Score] = []
    for where, part in _items(whole, "scores"):
        score = Score(
            model=_expect(part.get("model"), str, f"{where}.model", "a string"),
            decoding=_expect(part.get("decoding"), str, f"{where}.decoding", "a string"),
            temperature=_optional(part, "temperature", _Number, "a number", f"{where}."),
            seeds=_optional(part, "seeds", int, "a whole number", f"{where}."),
            prompts=_optional(part, "prompts", int, "a whole number", f"{where}."),
            metrics=_estimates(part, where),
        )
        if any((s.model, s.decoding) == (score.model, score.decoding) for s in scores):
            raise _wrong(where, "one score a model and decoding", [score.model, score.decoding])
        scores.append(score)
    return scores


def _imitation(whole: Mapping[str, Any]) -> dict[str, Estimates]:
    return {
        _expect(part.get("model"), str, f"{where}.model", "a string"): _estimates(part, where)
        for where, part in _items(whole, "imitation")
    }


def _numbers(part: Mapping[str, Any], key: str, at: str, *, gaps: bool = False) -> list[Any]:
    values = _optional(part, key, list, "a list of numbers", at) or []
    for i, value in enumerate(values):
        if not (gaps and value is None):
            _expect(value, _Number, f"{at}{key}[{i}]", "a number")
    return values


def _cache(part: Mapping[str, Any] | None) -> Cache | None:
    if part is None:
        return None
    at = "cache.set_size_histogram"
    histogram = _optional(part, "set_size_histogram", Mapping, "an object", "cache.") or {}
    _optional(part, "set_size", Mapping, "an object", "cache.")
    edges = _numbers(histogram, "edges", f"{at}.")
    counts = _numbers(histogram, "counts", f"{at}.")
    if (edges or counts) and len(edges) != len(counts) + 1:
        raise _wrong(at, "one more edge than counts", f"{len(edges)} and {len(counts)}")
    if any(not 0 < a < b for a, b in pairwise(edges)):
        raise _wrong(f"{at}.edges", "positive edges in ascending order", edges)
    bounds = []
    for where, row in _items(part, "bounds", "cache."):
        names = ("mean_size", "median_size", "bound", "bound_stationary", "kappa")
        values = {n: _optional(row, n, _Number, "a number", f"{where}.") for n in names}
        top_p = _expect(row.get("set_top_p"), _Number, f"{where}.set_top_p", "a number")
        bounds.append(Bound(set_top_p=top_p, **values))
    return Cache(dict(part), edges, counts, sorted(bounds, key=lambda b: b.set_top_p))


def _curves(part: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    curves = {}
    for label in part:
        curve = []
        for where, row in _items(part, label, "curves."):
            _expect(row.get("step"), _Number, f"{where}.step", "a number")
            # What is not a number here is a trainer's remark (a null, a string), not a curve.
            point = {k: v for k, v in row.items() if isinstance(v, _Number)}
            curve.append({k: v for k, v in point.items() if math.isfinite(v)})
        if curve:
            curves[str(label)] = curve
    return curves


def _samples(whole: Mapping[str, Any]) -> list[Sample]:
    samples = []
    for where, part in _items(whole, "samples"):
        prompt = _expect(part.get("prompt"), str, f"{where}.prompt", "a string")
        responses = _expect(part.get("responses"), Mapping, f"{where}.responses", "an object")
        for label, text in responses.items():
            _expect(text, str, f"{where}.responses.{label}", "a string")
        samples.append(Sample(prompt, dict(responses)))
    return samples


def _traces(whole: Mapping[str, Any]) -> list[Trace]:
    traces = []
    for where, part in _items(whole, "reward_traces"):
        tokens = _expect(part.get("tokens"), list, f"{where}.tokens", "a list of strings")
        for i, token in enumerate(tokens):
            _expect(token, str, f"{where}.tokens[{i}]", "a string")
        reward = _numbers(part, "implied_reward", f"{where}.", gaps=True)
        value = _numbers(part, "value", f"{where}.", gaps=True) or [None] * len(tokens)
        if not len(tokens) == len(reward) == len(value):
            lengths = f"{len(tokens)}, {len(reward)} and {len(value)}"
            raise _wrong(where, "tokens, implied_reward and value of one length", lengths)
        prompt = _expect(part.get("prompt"), str, f"{where}.prompt", "a string")
        model = _expect(part.get("model"), str, f"{where}.model", "a string")
        traces.append(Trace(prompt, model, tokens, reward, value))
    return traces
