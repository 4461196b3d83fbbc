"""Buffers of keys and values: what growing copies, and masks that are made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tdistill.models.in_place import InPlaceReader
from tdistill.models.language_model import LanguageModel
from tiny import tiny_lm


def columns_moved(tokens: int) -> tuple[int, int]:
    """Columns that are copied while a row of ``tokens`` is written, and the last capacity."""
    reader = InPlaceReader(tiny_lm(), 1)
    moved = []

    def move(stop: int, capacity: int) -> None:
        moved.append(reader.columns.stop - reader.columns.start)

    reader.cache = SimpleNamespace(layers=[SimpleNamespace(move=move)])
    reader.columns.lengths = [0]
    for _ in range(tokens):
        reader._make_room(0, 1)
        reader.columns.stop += 1
        reader.columns.lengths[0] += 1
    return sum(moved), reader.capacity


def test_what_is_copied_grows_with_the_tokens_and_not_with_their_square():
    found = {tokens: columns_moved(tokens) for tokens in (1_000, 4_000, 16_000)}
    for tokens, (moved, capacity) in found.items():
        assert moved < 5 * tokens
        assert tokens <= capacity <= 1.25 * tokens + 64
    assert found[16_000][0] > 2 * found[4_000][0]  # it does copy


def logits_of(lm: LanguageModel) -> list[torch.Tensor]:
    reader = InPlaceReader(lm, 3)
    found = [reader.begin([(3, 4, 5), (3, 4, 5), (7,)])]
    for step in range(3):
        found.append(reader.read(torch.tensor([5 + step, 9, 11])))
    reader.keep([0, 1])  # both of one length: nothing is padded any more
    found.append(reader.read(torch.tensor([8, 2])))
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_a_mask_by_hand_is_what_transformers_would_make(family: str):
    lm = tiny_lm(family)
    expected = logits_of(lm)
    lm.model.set_attn_implementation("sdpa")
    assert InPlaceReader(lm, 1).by_hand
    for ours, theirs in zip(logits_of(lm), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "by_hand"),
    [
        ({}, True),
        ({"sliding_window": 4}, False),
        ({"layer_types": ["full_attention"] * 2}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"attention_chunk_size": 8}, False),
        ({"_attn_implementation": "eager"}, False),
    ],
)
def test_only_where_all_layers_see_the_same(changes: dict[str, Any], by_hand: bool):
    from tdistill.models.in_place import _masks_by_hand

    config = SimpleNamespace(**{"_attn_implementation": "sdpa", **changes})
    assert _masks_by_hand(config) == by_hand


def test_long_prompts_are_read_without_padding(monkeypatch: pytest.MonkeyPatch):
    """Alone or with those of their length, so without a mask; short ones share a pass."""
    from tdistill.models import in_place

    seen = []
    original = in_place.last_logits

    def watched(lm: LanguageModel, ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        seen.append((tuple(ids.shape), options["mask"] is not None))
        return original(lm, ids, *rest, **options)

    monkeypatch.setattr(in_place, "last_logits", watched)
    prompts = [(3, 4), (5, 6, 7), *(tuple(range(i, i + 8)) for i in (2, 9)), tuple(range(3, 12))]
    lm = tiny_lm()
    with torch.no_grad():
        together = InPlaceReader(lm, 5).begin(prompts)
        assert seen == [((5, 9), True)]
        seen.clear()
        monkeypatch.setattr(in_place, "_LONG", 8)
        apart = InPlaceReader(lm, 5).begin(prompts)
    assert seen == [((2, 3), True), ((2, 8), False), ((1, 9), False)]
    torch.testing.assert_close(apart, together, atol=2e-5, rtol=1e-4)


def test_what_a_network_takes_is_not_looked_up_at_every_token(monkeypatch: pytest.MonkeyPatch):
    from tdistill.models import reading

    looked = []
    original = reading.inspect.signature

    def watched(*arguments: Any, **options: Any) -> Any:
        looked.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(reading.inspect, "signature", watched)
    lm = tiny_lm()
    with torch.no_grad():
        reader = InPlaceReader(lm, 2)
        reader.begin([(3, 4), (5, 6)])
        before = len(looked)
        for _ in range(4):
            reader.read(torch.tensor([7, 8]))
    assert len(looked) == before <= 1
