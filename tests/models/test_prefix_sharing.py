"""What tokens of shared rows see, and the masks that networks are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from tdistill.errors import ModelError
from tdistill.models.layout import Pair, lay_out
from tdistill.models.prefix_sharing import PrefixSharing

# [prompt 1 1 1][response 2 2][response 3][prompt 4 4][response 5] and padding
SHARED = PrefixSharing(
    position_ids=torch.tensor([[0, 1, 2, 3, 4, 3, 0, 1, 2, 0]]),
    segment=torch.tensor([[1, 1, 1, 2, 2, 3, 4, 4, 5, 0]]),
    prompt=torch.tensor([[1, 1, 1, 1, 1, 1, 4, 4, 4, 0]]),
)


def text_config(**settings: Any) -> Any:
    config = SimpleNamespace(_attn_implementation="sdpa", **settings)
    return SimpleNamespace(get_text_config=lambda: config)


def seen(**limits: int) -> list[list[int]]:
    """Indices that each token sees."""
    mask = SHARED.masks(text_config(**limits), torch.float32)
    assert mask.shape == (1, 1, 10, 10)
    return [row.nonzero().squeeze(1).tolist() for row in mask[0, 0]]


def test_a_token_sees_its_prompt_and_its_own_segment_up_to_itself():
    expected = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 5]]
    expected += [[6], [6, 7], [6, 7, 8], [9]]
    assert seen() == expected


def test_windows_and_chunks_count_positions():
    window = [[0], [0, 1], [1, 2], [2, 3], [3, 4], [2, 5], [6], [6, 7], [7, 8], [9]]
    assert seen(sliding_window=2) == window
    chunk = [[0], [0, 1], [2], [2, 3], [4], [2, 5], [6], [6, 7], [8], [9]]
    assert seen(attention_chunk_size=2) == chunk


def test_a_mask_for_each_type_of_layer():
    types = ["full_attention", "sliding_attention", "full_attention"]
    config = text_config(layer_types=types, sliding_window=2)
    masks = SHARED.masks(config, torch.float32)
    assert set(masks) == set(types)
    assert masks["full_attention"].sum() > masks["sliding_attention"].sum()
    with pytest.raises(ModelError, match=r"layers are \['full_attention', 'linear_attention'\]"):
        SHARED.masks(text_config(layer_types=["linear_attention", types[0]]), torch.float32)


def test_attention_without_masks_is_refused():
    config = text_config()
    config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="attention is flash_attention_2, which takes no mask"):
        SHARED.masks(config, torch.float32)


def test_the_block_mask_of_flex_attention_is_the_same():
    rows = [Pair(p, (5,) * n) for n in (3, 9, 1, 4) for p in ((4, 5, 6), (7, 8, 9, 10, 11))]
    shared = lay_out(rows, 0).sharing
    assert shared is not None
    count, width = shared.segment.shape
    dense = shared.masks(text_config(), torch.float32)
    blocks = create_mask(shared.sees(), count, 1, width, width, device="cpu")
    assert torch.equal(blocks, dense)
