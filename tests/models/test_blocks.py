"""Networks that count blocks by places in a row: what shares rows and caches must not move them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from architectures import architecture, architecture_lm
from tdistill.models.layout import Pair, lay_out
from tdistill.models.readers import GroupedReader, open_reader
from tdistill.models.row_trials import shares_prompts
from tdistill.models.scores import step_scores
from tiny import VOCABULARY

LOCAL = {"num_layers": 2, "attention_types": [[["global", "local"], 1]]}
BY_PLACE = [
    ("gpt_neo", {**LOCAL, "window_size": 12}),
    ("llama4_text", {"attention_chunk_size": 8, "floor_scale": 12, "attn_scale": 1.0}),
]
TOO_LONG = [
    ("gpt_neo", {**LOCAL, "window_size": 300, "max_position_embeddings": 512}),
    ("llama4_text", {"floor_scale": 8192}),
]


def tokens(count: int, seed: int) -> tuple[int, ...]:
    drawn = torch.randint(4, 60, (count,), generator=torch.Generator().manual_seed(seed))
    return tuple(drawn.tolist())


@pytest.mark.parametrize(("model_type", "changes"), BY_PLACE)
def test_responses_that_follow_each_other_are_scored_as_alone(model_type: str, changes: Any):
    model = architecture(model_type, layers=2, **changes)
    pairs = [Pair(tokens(4, 0), tokens(n, n)) for n in (9, 10, 11)]
    layout = lay_out(pairs, 1)
    assert layout.sharing is not None
    with warnings.catch_warnings(action="ignore"):
        scores = step_scores(model, layout, vocabulary_size=VOCABULARY)
    found = scores.rows(0, len(scores)).log_softmax(-1)
    with torch.no_grad():
        whole = [model(torch.tensor([p + r]), use_cache=False).logits[0] for p, r in pairs]
    expected = torch.cat([z[3 : 3 + len(r)] for z, (_, r) in zip(whole, pairs, strict=True)])
    torch.testing.assert_close(found, expected.log_softmax(-1), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("model_type", "changes"), BY_PLACE)
def test_rows_beside_longer_ones_are_decoded_as_alone(model_type: str, changes: Any):
    lm = architecture_lm(model_type, layers=2, **changes)
    rows = [tokens(n, n) for n in (26, 9)]
    reader = open_reader(lm, 2)
    found = [reader.begin([row[:-2] for row in rows])]
    found += [reader.read(torch.tensor([row[at] for row in rows])) for at in (-2, -1)]
    for place, row in enumerate(rows):
        with torch.no_grad():
            whole = lm.model(torch.tensor([row]), use_cache=False).logits[0, -3:]
        own = torch.stack([logits[place] for logits in found])
        torch.testing.assert_close(own, whole, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("model_type", "changes"), TOO_LONG)
def test_blocks_too_long_to_be_tried_are_not_trusted(model_type: str, changes: Any):
    lm = architecture_lm(model_type, layers=2, **changes)
    with pytest.warns(UserWarning, match="it reads in blocks too long to be tried"):
        assert not shares_prompts(lm.model)
    assert isinstance(open_reader(lm, 2), GroupedReader)


def test_windows_that_count_positions_are_trusted():
    model = architecture("mistral", layers=2, sliding_window=300, max_position_embeddings=512)
    assert shares_prompts(model)
