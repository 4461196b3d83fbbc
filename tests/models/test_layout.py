"""Shared prompts give what separate rows give, value and gradient; parts hold every row once."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.models.layout import Layout, Pair, alike, cut, lay_out, pack, separate
from tdistill.models.row_trials import masks_rows, shares_prompts
from tdistill.models.scores import HeadMode, step_scores
from tdistill.models.seen_parts import SeenParts
from tiny import FAMILIES, VOCABULARY, tiny_model

# Prompts of different lengths with 3, 2, 1 and 2 responses, not in order; one of a single token.
ROWS = [
    Pair((3, 4, 5), (9, 7, 1)),
    Pair((8,), (30, 31, 12, 2)),
    Pair((3, 4, 5), (5,)),
    Pair((6, 2), (11, 12, 13)),
    Pair((3, 4, 5), (7, 7, 8, 9, 10, 11)),
    Pair((8,), (2, 3)),
    Pair((40, 41, 42, 43, 40, 41, 42, 43, 44), (1, 2, 3)),
    Pair((40, 41, 42, 43, 40, 41, 42, 43, 44), (3, 3, 3, 4)),
]
STEPS = sum(len(r.response_ids) for r in ROWS)
# Windows and chunks that are shorter than a sequence: they count positions, not places in a row.
CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"tie_word_embeddings": True}),
    ("phi", {}),
    ("gemma2", {"sliding_window": 4}),
    ("mistral", {"sliding_window": 5}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
]


def random_rows(seed: int) -> list[Pair]:
    chance = random.Random(seed)
    prompts = [tuple(chance.choices(range(2, 60), k=chance.randint(1, 12))) for _ in range(4)]
    return [
        Pair(chance.choice(prompts), tuple(chance.choices(range(2, 60), k=chance.randint(1, 9))))
        for _ in range(chance.randint(1, 14))
    ]


def run(model: Any, layout: Any, head: HeadMode = "auto") -> list[Tensor]:
    """A loss over all scores, and the gradients of it."""
    model.zero_grad()
    scores = step_scores(model, layout, vocabulary_size=VOCABULARY, head=head)
    logits = scores.rows(0, len(scores))
    weights = torch.linspace(0.5, 1.5, VOCABULARY)
    (logits * weights).sin().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("family", "changes"), CASES)
def test_sharing_equals_separate_rows_in_value_and_gradient(
    family: str, changes: dict[str, Any], attention: str
):
    model = tiny_model(family, **changes)
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("the family has eager attention only")
    model.set_attn_implementation(attention)
    with warnings.catch_warnings(action="error"):
        assert shares_prompts(model)
        assert masks_rows(model) == (attention == "eager")
    for side in ("right", "left"):
        expected = run(model, pack(ROWS, pad_id=1, padding_side=side))
        laid = lay_out(ROWS, 1, padding_side=side)
        assert laid.sharing is not None
        assert laid.input_ids.numel() < pack(ROWS, pad_id=1).input_ids.numel() / 2
        found = run(model, laid)
        assert len(found) == len(expected) > 10
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 4}], ids=["whole", "window"])
def test_long_parts_are_read_block_by_block(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("mistral", **changes)
    model.set_attn_implementation("sdpa")
    expected = run(model, lay_out(ROWS, 1))
    monkeypatch.setattr("tdistill.models.seen_parts._SMALL", 0)
    monkeypatch.setattr("tdistill.models.seen_parts._BLOCK", 2)
    asked: list[int] = []
    plain = SeenParts._make_mask

    def noted(self: Any, asks: int, sees: int, device: Any) -> Any:
        made = plain(self, asks, sees, device)
        asked.extend([] if made is None else [asks])
        return made

    monkeypatch.setattr(SeenParts, "_make_mask", noted)
    found = run(model, lay_out(ROWS, 1))
    assert max(asked) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["auto", "full"])
def test_sharing_is_no_less_accurate_than_separate_rows(head: HeadMode):
    """Against float64, on logits and gradients, over random rows."""
    errors: dict[bool, float] = {True: 0.0, False: 0.0}
    for seed in range(6):
        rows = [*random_rows(seed), Pair((5, 6, 7, 8), (2, 3)), Pair((5, 6, 7, 8), (4, 3))]
        model = tiny_model("llama", seed=seed, scale=4.0)
        truth = run(tiny_model("llama", seed=seed, scale=4.0).double(), pack(rows, pad_id=1), head)
        for shared in errors:
            laid = lay_out(rows, 1, share=shared)
            assert (laid.sharing is not None) == shared
            found = run(model, laid, head)
            errors[shared] += sum(
                float((a.double() - b).abs().max() / b.abs().max())
                for a, b in zip(found, truth, strict=True)
            )
    assert errors[True] < 1.5 * errors[False] < 1e-2


def seen_by_steps(layout: Any, rows: list[Pair]) -> list[tuple[int, ...]]:
    """The tokens each step has before it, in order of position, by the rule of what is seen."""
    ids, sharing = layout.input_ids, layout.sharing
    found = []
    for line, place in zip(layout.row.tolist(), layout.position.tolist(), strict=True):
        index = torch.arange(ids.shape[1])
        key = torch.tensor(line), torch.tensor(0), torch.tensor(place), index
        seen = sharing.sees()(*key)
        order = sharing.position_ids[line, seen]
        assert order.tolist() == list(range(len(order)))
        found.append(tuple(ids[line, seen].tolist()))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_every_step_has_its_prompt_and_the_actions_before_it(seed: int):
    rows = [*random_rows(seed), Pair((5, 6, 7, 8), (2, 3)), Pair((5, 6, 7, 8), (4, 3))]
    expected = [
        (*r.prompt_ids, *r.response_ids[:t]) for r in rows for t in range(len(r.response_ids))
    ]
    for side in ("right", "left"):
        for most in (None, 16):
            laid = lay_out(rows, 0, padding_side=side, most_tokens=most)
            assert laid.sharing is not None
            assert seen_by_steps(laid, rows) == expected
            blank = laid.attention_mask == 0
            assert (laid.sharing.segment[blank] == 0).all()
            assert (laid.input_ids[blank] == 0).all()
            apart = separate(laid)
            for line, place, before in zip(apart.row, apart.position, expected, strict=True):
                assert tuple(apart.input_ids[line, : place + 1].tolist()) == before
                assert apart.attention_mask[line, : place + 1].all()


def test_rows_are_shared_only_where_that_is_smaller():
    alone = [Pair((1, 2), (3, 4)), Pair((1, 3), (3, 4))]
    for rows, share in ((alone, True), (ROWS, False)):
        laid = lay_out(rows, 1, share=share)
        assert laid.sharing is None
        expected = pack(rows, pad_id=1).named_tensors()
        for name, tensor in laid.named_tensors().items():
            assert torch.equal(tensor, expected[name])
        assert separate(laid) is laid


def test_long_rows_are_cut_evenly_where_attention_would_cost_more_than_the_prompt():
    rows = [Pair((7,) * 128, (5,) * 65) for _ in range(16)]  # 64 of them read
    assert lay_out(rows[:8], 1).input_ids.shape == (1, 128 + 8 * 64)
    assert lay_out(rows, 1).input_ids.shape == (2, 128 + 8 * 64)
    assert lay_out(rows[:8], 1, most_tokens=400).input_ids.shape == (2, 128 + 4 * 64)
    assert lay_out(rows[:8], 1, most_tokens=50).sharing is None  # longer alone than allowed


def test_a_network_that_cannot_share_gets_separate_rows_and_is_named():
    model = tiny_model("bloom", n_layer=2, n_head=2)
    laid = lay_out(ROWS, 1)
    with pytest.warns(UserWarning, match=r"BloomForCausalLM: .* takes no position_ids.* separate"):
        found = run(model, laid)
    with warnings.catch_warnings(action="error"):  # named once
        run(model, laid)
    expected = run(model, pack(ROWS, pad_id=1))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["mamba", "qwen3_next"])
def test_networks_with_a_state_are_refused(family: str):
    changes = {"num_experts": 2, "linear_num_value_heads": 2, "linear_num_key_heads": 2}
    model = tiny_model(family, **(changes if family == "qwen3_next" else {}))
    with pytest.warns(UserWarning, match="cannot share its tokens"):
        assert not shares_prompts(model)


def test_a_network_that_ignores_the_mask_is_found_by_its_scores():
    model = tiny_model("llama")

    def forget(module: Any, args: Any, inputs: dict[str, Any]) -> Any:
        return args, {**inputs, "attention_mask": None}

    model.model.register_forward_pre_hook(forget, with_kwargs=True)
    with pytest.warns(UserWarning, match=r"scores differ by up to [\d.]+ nats"):
        assert not shares_prompts(model)


def test_a_network_that_loses_what_is_on_the_mask_is_found_when_it_is_tried():
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    expected = run(model, lay_out(ROWS, 1))
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")

    def copy(module: Any, args: Any, inputs: dict[str, Any]) -> Any:
        mask = inputs.get("attention_mask")
        return args, {**inputs, "attention_mask": None if mask is None else mask.clone()}

    model.model.register_forward_pre_hook(copy, with_kwargs=True)
    with warnings.catch_warnings(action="error"):
        assert shares_prompts(model) and masks_rows(model)
    for a, b in zip(run(model, lay_out(ROWS, 1)), expected, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("most", [None, 1, 12, 30, 1000])
def test_parts_hold_every_row_once_and_keep_the_budget(most: int | None, share: bool):
    for seed in range(20):
        rows = random_rows(seed)
        parts = cut(rows, most, share=share)
        assert Counter(i for part in parts for i in part) == Counter(range(len(rows)))
        for part in parts:
            chosen = [rows[i] for i in part]
            size = lay_out(chosen, 0, share=share, most_tokens=most).input_ids.numel()
            assert most is None or size <= most or len(part) == 1


def test_parts_hold_like_lengths():
    rows = [Pair((1,), (2,) * (1 + 7 * i % 50)) for i in range(50)]
    parts = [[rows[i] for i in part] for part in cut(rows, 100, share=False)]
    lengths = [len(r.response_ids) for part in parts for r in part]
    assert lengths == sorted(lengths, reverse=True)
    cells = sum(pack(part, pad_id=0).input_ids.numel() for part in parts)
    used = sum(lengths)
    assert 1 - used / cells < 0.1
    assert 1 - used / pack(rows, pad_id=0).input_ids.numel() > 0.45


def test_neighbours_are_alike():
    rows = [rows for seed in range(3) for rows in random_rows(seed)]
    ordered = [rows[i].prompt_ids for i in alike(rows)]
    changes = sum(a != b for a, b in pairwise(ordered))
    assert changes == len(set(ordered)) - 1


def test_a_layout_goes_to_a_device():
    for laid in (lay_out(ROWS, 1), lay_out(ROWS, 1, share=False)):
        moved = laid.to("cpu")
        assert isinstance(moved, Layout)
        assert torch.equal(moved.input_ids, laid.input_ids)
