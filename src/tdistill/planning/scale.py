"""How large a job is: prompts, tokens, set sizes, each counted, measured, stated or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from tdistill.data.config import AUTO
from tdistill.data.sources import matching_paths, read_rows
from tdistill.errors import DataError
from tdistill.files import DEMO_PREFIX, HUB_PREFIX, in_world
from tdistill.recipe import Recipe
from tdistill.teacher.cache.manifest import MANIFEST, read_manifest
from tdistill.teacher.config import CaptureConfig

Origin = Literal["stated", "counted", "measured", "assumed"]

_PROMPTS = 1000  # where nothing can be counted
_SMALL = 1 << 23  # bytes of a file whose rows are read to be counted
# Mean members of a set by captured mass: SmolLM2-135M-Instruct on its own responses to the demo's
# prompts (`tdistill inspect demo-run/cache`). Stronger teachers have smaller ones.
_SET_SIZES = ((0.5, 2.9), (0.6, 4.4), (0.7, 7.5), (0.8, 14.2), (0.9, 33.0), (1.0, 256.0))


@dataclass(frozen=True)
class Known:
    """What is stated, or was measured before, in place of what is assumed; None: it is not known.

    Attributes:
        prompts: to train on.
        test_prompts: to judge on.
        prompt_tokens: of a prompt, in the mean.
        response_tokens: of a response of the teacher, in the mean.
        set_size: members of a set, in the mean.
        step_bytes: of a cache, everything in it counted.
        origins: where each of these has its number from.
        seconds: that stages took, by name.
        rates: tokens a second by kind of work.
    """

    prompts: float | None = None
    test_prompts: float | None = None
    prompt_tokens: float | None = None
    response_tokens: float | None = None
    set_size: float | None = None
    step_bytes: float | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)

    def over(self, other: Known) -> Known:
        """These, and the others where these are silent."""
        numbers = [f.name for f in fields(self) if f.name not in ("origins", "seconds", "rates")]
        silent = {n: getattr(other, n) for n in numbers if getattr(self, n) is None}
        return replace(
            self,
            **silent,
            origins={k: v for k, v in other.origins.items() if k in silent} | dict(self.origins),
            seconds={**other.seconds, **self.seconds},
            rates={**other.rates, **self.rates},
        )


@dataclass(frozen=True)
class Scale:
    """The numbers of a job.

    Attributes:
        prompts: to train on.
        test_prompts: to judge on; likewise ``valid_prompts``.
        prompt_tokens: of a prompt, in the mean; the longest has ``longest_prompt``.
        response_tokens: of a response of the teacher, in the mean; of a model that is judged,
            ``judged_tokens``.
        set_size: members of a set, in the mean.
        step_bytes: of a cache that was measured, everything in it counted; else None.
        origins: where each number is from.
    """

    prompts: int
    test_prompts: int
    valid_prompts: int
    prompt_tokens: float
    longest_prompt: int
    response_tokens: float
    judged_tokens: float
    set_size: float
    step_bytes: float | None
    origins: Mapping[str, Origin]

    @property
    def row(self) -> float:
        """Tokens of a prompt with a response, in the mean."""
        return self.prompt_tokens + self.response_tokens


def scale_of(recipe: Recipe, known: Known) -> Scale:
    """The numbers of a recipe whose paths are placed.

    Args:
        recipe: what is to be done.
        known: counts before anything that is counted or assumed here.

    Raises:
        DataError: a source of the user's is not there.
    """
    data, limit = recipe.data, recipe.rollouts.max_new_tokens
    prompts, origin = _prompts(recipe, known)
    mean = {
        "prompt_tokens": data.max_prompt_tokens / 2,
        "response_tokens": float(limit),
        "set_size": assumed_set_size(recipe.rollouts.capture),
    }
    given = {name for name in mean if getattr(known, name) is not None}
    mean |= {name: getattr(known, name) for name in given}
    origins = {n: known.origins.get(n, "stated") if n in given else "assumed" for n in mean}
    return Scale(
        prompts=prompts["train"],
        test_prompts=prompts["test"],
        valid_prompts=prompts["valid"],
        prompt_tokens=min(mean["prompt_tokens"], data.max_prompt_tokens),
        longest_prompt=data.max_prompt_tokens,
        response_tokens=min(mean["response_tokens"], limit),
        judged_tokens=min(mean["response_tokens"], recipe.evaluation.max_new_tokens),
        set_size=mean["set_size"],
        step_bytes=known.step_bytes,
        origins=origins | {"prompts": origin},  # pyright: ignore
    )


def _prompts(recipe: Recipe, known: Known) -> tuple[dict[str, int], Origin]:
    """Prompts of each split, and where the number of those to train on is from.

    What is held out of the training source is not trained on.
    """
    data, counted = recipe.data, _counted(recipe)
    origin: Origin = "assumed" if counted["train"] is None else "counted"
    train = _PROMPTS if counted["train"] is None else counted["train"]
    if known.prompts is not None:
        train, origin = int(known.prompts), known.origins.get("prompts", "stated")
    held = {}
    for split, share in (("test", data.test_share), ("valid", data.valid_share)):
        own = counted[split]
        held[split] = max(1, round(share * train)) if own is None else own
    if origin == "counted":
        train -= sum(held[split] for split in data.split_off)
    if known.test_prompts is not None:
        held["test"] = int(known.test_prompts)
    return {"train": max(train, 1), **held}, origin


def assumed_set_size(capture: CaptureConfig) -> float:
    """Members of a set where none was measured: between those of a small teacher, by its mass.

    Example:
        >>> assumed_set_size(CaptureConfig(captured_top_p=0.85))
        23.6
    """
    mass, cap = capture.captured_top_p, capture.max_set_size or float("inf")
    below = [pair for pair in _SET_SIZES if pair[0] <= mass] or [_SET_SIZES[0]]
    above = [pair for pair in _SET_SIZES if pair[0] >= mass] or [_SET_SIZES[-1]]
    (low, few), (high, many) = below[-1], above[0]
    part = 0.0 if high == low else (mass - low) / (high - low)
    return min(cap, round(few + part * (many - few), 2))


def of_cache(folder: Path, capture: CaptureConfig) -> Known:
    """What a cache of the same capture says: lengths, set size, bytes; nothing if there is none.

    Raises:
        CacheError: the manifest there is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return Known()
    manifest = read_manifest(folder)
    same = manifest.identity.captured_top_p == capture.captured_top_p
    same &= manifest.identity.max_set_size == capture.max_set_size
    if not manifest.steps or not same:
        return Known()
    members = sum(shard.members for shard in manifest.shards)
    size = sum(shard.bytes for shard in manifest.shards)
    return Known(
        response_tokens=manifest.steps / manifest.rows,
        set_size=members / manifest.steps,
        step_bytes=size / manifest.steps,
        origins={"response_tokens": "measured", "set_size": "measured"},
    )


def _counted(recipe: Recipe) -> dict[str, int | None]:
    """Rows of each split, cut to its limit; None where they cannot be counted."""
    counted: dict[str, int | None] = {}
    for split in ("train", "valid", "test"):
        source, limit = getattr(recipe.data, split), getattr(recipe.data, f"limit_{split}")
        made = recipe.world is not None and source is not None and not Path(source).exists()
        rows = 0 if source is None else None if made else _rows(source)
        counted[split] = rows if rows is None or limit is None else min(rows, limit)
    return counted


def _rows(source: str) -> int | None:
    """Rows of a source, without reading more than it takes to count them."""
    if source == AUTO or source.startswith(HUB_PREFIX) or in_world(source):
        return None
    if source.startswith(DEMO_PREFIX):
        return len(read_rows(source))
    counts = [_rows_of_file(path, source) for path in matching_paths(source)]
    return None if None in counts else sum(filter(None, counts))


def _rows_of_file(path: Path, source: str) -> int | None:
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            return sum(1 for line in lines if not line.isspace())
    if path.suffix == ".parquet":
        from pyarrow import parquet

        try:
            return parquet.read_metadata(path).num_rows
        except OSError as error:
            raise DataError(f"{path}: expected a Parquet file; found another. {error}") from error
    if path.is_dir() or path.stat().st_size > _SMALL:
        return None
    return len(read_rows(str(path)))
