"""Teacher rollouts: responses sampled from proj_p of the teacher, captured in the same pass.

Work is cut into units before any of it starts, one for each shard: which rows go together and
which numbers they draw does not depend on what was done before, so an interrupted and resumed run
gives the same cache. Every response draws numbers of its own, which depend on the seed and on its
place in the whole plan: other batches and shards give the same responses, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tdistill.core import top_p_sets, truncate
from tdistill.evidence.rows import Row
from tdistill.hashing import key_of
from tdistill.models.generation import draw_from_sets, generate, row_uniforms, seed_of
from tdistill.models.language_model import LanguageModel
from tdistill.teacher.ahead import made_ahead
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.cache.writer import CacheWriter
from tdistill.teacher.capture import Recorder, capture
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.shares import WHOLE, Share

PromptIds = tuple[int, ...]

_AT_ONCE = 2  # units that a server is asked for: it has work while the last responses of one come


@dataclass(frozen=True)
class Unit:
    """Responses sampled from one queue, and written as one shard.

    Attributes:
        prompts: the prompt of each response; the samples of a prompt follow each other.
        samples: which of its prompt's samples each response is.
        first: place of the first response in the whole plan; it names the numbers it draws.
        seed: of the whole plan.
    """

    prompts: tuple[PromptIds, ...]
    samples: tuple[int, ...]
    first: int
    seed: int


class UnitSampler(Protocol):
    """A teacher that is no network of ours; units are asked for from several threads."""

    def identity(self, config: CaptureConfig) -> CacheIdentity:
        """The identity of the cache that it would write."""
        ...

    def sample_unit(self, unit: Unit, config: RolloutConfig) -> list[CachedResponse]:
        """Responses with the teacher's evidence at each of their steps."""
        ...

    def kept(self, unit: Unit, config: RolloutConfig) -> None:
        """Hear that a unit is written, so that what was held for it may go."""
        ...

    def stop(self) -> None:
        """Ask for nothing more: units that are under way in other threads fail soon."""
        ...


def plan_units(prompts: Sequence[PromptIds], config: RolloutConfig) -> list[Unit]:
    """The fixed units of work: every prompt n times, prompts of similar length together."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))

    def unit(places: range) -> Unit:
        chosen = tuple(prompts[order[place // config.n]] for place in places)
        return Unit(chosen, tuple(p % config.n for p in places), places[0], config.seed)

    return list(map(unit, _unit_places(prompts, config)))


def _unit_places(prompts: Sequence[PromptIds], config: RolloutConfig) -> list[range]:
    """The places in the plan that each unit has."""
    places, size = range(len(prompts) * config.n), config.batch_size * config.batches_per_shard
    return [places[first : first + size] for first in range(0, len(places), size)]


def plan_key(prompts: Sequence[PromptIds], config: RolloutConfig) -> str:
    """Names the work: the same prompts and settings give the same key, and so the same files."""
    return key_of(prompts, config)


def planned_shards(prompts: Sequence[PromptIds], config: RolloutConfig) -> list[str]:
    """Names of the shards that :func:`collect_rollouts` writes, one for each unit of work."""
    key = plan_key(prompts, config)
    return [f"rollouts-{key}-{number:05d}" for number in range(len(_unit_places(prompts, config)))]


def collect_rollouts(
    teacher: LanguageModel | UnitSampler,
    prompts: Sequence[PromptIds],
    config: RolloutConfig,
    writer: CacheWriter,
    on_finished: Callable[[int], None] = lambda count: None,
    *,
    share: Share = WHOLE,
) -> Iterator[int]:
    """Sample what the cache does not hold yet; yields the rows of each shard, done or reused.

    Args:
        teacher: the model to sample from.
        prompts: token ids of the prompts; duplicates are sampled once each.
        config: sampling and capture.
        writer: the open cache.
        on_finished: told how many responses have ended, as they do.
        share: which units of the plan are done here.

    Yields:
        Rows of each shard, in order: shards already whole are not sampled again.
    """
    plan = list(zip(planned_shards(prompts, config), plan_units(prompts, config), strict=True))
    items = ((name, unit, writer.has(name)) for name, unit in share.of(plan))

    def made(item: tuple[str, Unit, bool]) -> list[CachedResponse] | None:
        _, unit, known = item
        if known:
            return None
        if isinstance(teacher, LanguageModel):
            return sample_unit(teacher, unit, config, on_finished)
        return teacher.sample_unit(unit, config)

    if isinstance(teacher, LanguageModel):
        found = made_ahead(made, items, at_once=1)
    else:
        found = made_ahead(made, items, at_once=_AT_ONCE, stop=teacher.stop)
    for (name, unit, _), responses in found:
        if responses is not None:
            writer.write(name, responses)
            if not isinstance(teacher, LanguageModel):
                teacher.kept(unit, config)
                on_finished(len(unit.prompts))
        yield len(unit.prompts)


def count_sampled(
    prompts: Sequence[PromptIds], config: RolloutConfig, writer: CacheWriter, share: Share = WHOLE
) -> tuple[int, int]:
    """Responses of a share of the plan that the cache holds already, and all of them."""
    plan = list(zip(planned_shards(prompts, config), plan_units(prompts, config), strict=True))
    sizes = [(len(unit.prompts), writer.has(name)) for name, unit in share.of(plan)]
    return sum(size for size, known in sizes if known), sum(size for size, _ in sizes)


def sample_unit(
    teacher: LanguageModel,
    unit: Unit,
    config: RolloutConfig,
    on_finished: Callable[[int], None] = lambda count: None,
) -> list[CachedResponse]:
    """Responses with the teacher's evidence at each of their steps, from one pass."""
    recorder, draws = Recorder(), config.capture.tail_samples
    places = range(unit.first, unit.first + len(unit.prompts))
    seeds = [seed_of(unit.seed, place) for place in places]
    uniform = row_uniforms(seeds, device=teacher.device)
    # Numbers of their own: the same responses are sampled with and without a tail.
    seeds = [seed_of(seed, "tail", draws) for seed in seeds]
    tails = row_uniforms(seeds, device=teacher.device, each=draws)

    def choose(logits: Tensor, active: Tensor) -> Tensor:
        kept = capture(logits, config.capture, tails(active) if draws else None)
        whole = config.capture.min_gain is None  # else the set may hold less than the nucleus
        if whole and config.sampling_top_p <= config.capture.captured_top_p:
            # From the rounded sets: what training will truncate, so no action falls outside.
            nucleus = truncate(kept.sets, config.sampling_top_p)
        else:
            nucleus = top_p_sets(kept.log_probs, config.sampling_top_p)
        chosen = draw_from_sets(nucleus, uniform(active))
        recorder.add(active, kept.evidence(chosen))
        return chosen

    responses = generate(
        teacher,
        unit.prompts,
        choose,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        on_finished=on_finished,
    )
    rows = [Row(p, r.ids, r.ended) for p, r in zip(unit.prompts, responses, strict=True)]
    parts = zip(rows, recorder.by_row(), unit.samples, strict=True)
    return [CachedResponse(row, part, f"rollout:{sample}") for row, part, sample in parts]
