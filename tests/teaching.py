"""A tiny teacher, its rollouts and hand-made records, shared by the tests of evidence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tdistill.core import TopPSets
from tdistill.evidence.evidence import Evidence
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel
from tdistill.teacher.cache.checked import NOTE
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.cache.reader import Cache
from tdistill.teacher.cache.rounding import round_log_probs, round_normaliser
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.cache.writer import CacheWriter, identity_of
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.rollouts import collect_rollouts
from tiny import tiny_lm

END = 1
PROMPTS = ((3, 4, 5, 6), (9,), (10, 11, 12), (13, 14), (20, 21, 22, 23, 24))
CAPTURE = CaptureConfig(captured_top_p=0.9, max_set_size=None)
IDENTITY = CacheIdentity("teacher", "f" * 16, "0" * 16, 64, 0.9, None, 0, None)


@cache
def teacher(family: str = "llama", vocab_size: int = 64) -> LanguageModel:
    """A random network; its sets have from 1 to about 20 of the 64 tokens."""
    lm = tiny_lm(family, seed=1, vocab_size=vocab_size)
    if family == "llama":
        norm: Any = lm.model.get_submodule("model.norm")
        torch.nn.init.constant_(norm.weight, 4.0)
    return lm


def settings(**changes: Any) -> RolloutConfig:
    """Small rollouts: 15 responses in 4 units and shards."""
    chosen: dict[str, Any] = {
        "n": 3,
        "sampling_top_p": 0.8,
        "max_new_tokens": 8,
        "batch_size": 4,
        "batches_per_shard": 1,
        "seed": 5,
        "capture": CAPTURE,
    }
    return RolloutConfig(**(chosen | changes))


def roll(
    folder: Path,
    prompts: Sequence[tuple[int, ...]] = PROMPTS,
    *,
    lm: LanguageModel | None = None,
    **changes: Any,
) -> Cache:
    """The cache after sampling everything."""
    config, lm = settings(**changes), lm or teacher()
    with CacheWriter(folder, identity_of(lm, config.capture)) as writer:
        assert sum(collect_rollouts(lm, prompts, config, writer)) == len(prompts) * config.n
    return Cache(folder)


def sample_everything(folder: str) -> None:
    """The work of a process that is killed: 20 shards of 4 responses."""
    torch.set_num_threads(1)
    roll(Path(folder), n=16, max_new_tokens=24)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, but for what was read whole of a cache, and when."""
    files = [file for file in sorted(folder.iterdir()) if file.name != NOTE]
    return {file.name: file.read_bytes() for file in files}


def record(
    prompt: tuple[int, ...], response: tuple[int, ...], *, seed: int = 0, source: str = "score"
) -> CachedResponse:
    """A response with random evidence: sets of 1 to 5 members out of 64 tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(len(response), 64, generator=generator)
    log_probs = round_log_probs(logits.log_softmax(-1))
    sizes = torch.randint(1, 6, (len(response),), generator=generator)
    inside = torch.arange(64) < sizes[:, None]
    sorted_probs, order = log_probs.sort(descending=True, stable=True)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    sets = TopPSets(order[inside], sorted_probs[inside], offsets)
    action = log_probs.gather(1, torch.tensor(response)[:, None]).squeeze(1)
    normaliser = round_normaliser(logits.logsumexp(-1))
    row = Row(prompt, response, response[-1] == END)
    return CachedResponse(row, Evidence(sets, normaliser, action), source)


def assert_equal(found: Evidence, expected: Evidence) -> None:
    """The same numbers, exactly."""
    for a, b in zip(_tensors(found), _tensors(expected), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def assert_close(found: Evidence, expected: Evidence) -> None:
    """The same members; log-probabilities may round to neighbouring levels."""
    assert torch.equal(found.sets.ids, expected.sets.ids)
    assert torch.equal(found.sets.offsets, expected.sets.offsets)
    rounding: dict[str, float] = {"rtol": 0, "atol": 2.0**-7}
    torch.testing.assert_close(found.sets.log_probs, expected.sets.log_probs, **rounding)
    torch.testing.assert_close(found.action_log_prob, expected.action_log_prob, **rounding)
    torch.testing.assert_close(found.log_normaliser, expected.log_normaliser, rtol=0, atol=2.0**-9)


def _tensors(evidence: Evidence) -> tuple[torch.Tensor, ...]:
    sets = evidence.sets
    return sets.ids, sets.log_probs, sets.offsets, evidence.log_normaliser, evidence.action_log_prob
