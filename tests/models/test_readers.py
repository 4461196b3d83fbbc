"""Reading in place: the same tokens as one request at a time without a cache, and less work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tdistill.models import in_place
from tdistill.models.decoding import Decoding
from tdistill.models.generation import (
    Companion,
    Response,
    decoding_sampler,
    draw,
    generate,
    seed_of,
    uniforms,
)
from tdistill.models.in_place import InPlaceReader
from tdistill.models.language_model import LanguageModel
from tdistill.models.readers import LibraryReader, open_reader
from tiny import FAMILIES, VOCABULARY, by_family, spread, tiny_lm, tokenizer

END, LIMIT, SEED = 1, 12, 3
# Prompts of 1 to 7 tokens; some are asked several times in a row, one again later.
QUEUE = [[9], [9], [13, 14], [3, 4, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7, 8, 9]]
QUEUE += [[10, 11, 12], [20, 21, 22, 23], [9], [9], [9], [9], [30, 31]]


def alone(lm: LanguageModel, prompt: Sequence[int], place: int, decoding: Decoding) -> Response:
    """One request by itself: everything is read again for every token."""
    tokens: list[int] = []
    numbers = uniforms(torch.tensor(seed_of(SEED, place)), torch.arange(LIMIT))
    for step in range(LIMIT):
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*prompt, *tokens]])).logits[0, -1:, :VOCABULARY]
        log_probs = (logits / decoding.temperature).log_softmax(-1)
        drawn = logits.argmax(-1) if decoding.greedy else draw(log_probs, numbers[step : step + 1])
        tokens.append(int(drawn))
        if tokens[-1] in lm.end_ids:
            return Response(tuple(tokens), True)
    return Response(tuple(tokens), False)


def queued(lm: LanguageModel, decoding: Decoding, batch_size: int | None) -> list[Response]:
    sampler = decoding_sampler(decoding, len(QUEUE), seed=SEED)
    return generate(lm, QUEUE, sampler, max_new_tokens=LIMIT, batch_size=batch_size)


def check(lm: LanguageModel) -> None:
    """Greedy and sampled, in batches of all sizes; many tokens end a response."""
    lm.model.generation_config.eos_token_id = [END, *range(54, 64)]  # pyright: ignore
    lengths = set()
    for decoding in (Decoding(greedy=True), Decoding(temperature=1.5)):
        expected = [alone(lm, prompt, i, decoding) for i, prompt in enumerate(QUEUE)]
        lengths |= {len(response.ids) for response in expected}
        for batch_size in (1, 4, None):
            assert queued(lm, decoding, batch_size) == expected
    assert len(lengths) > 3, "rows must end at different times"


@pytest.mark.parametrize("family", by_family(FAMILIES))
def test_a_queue_gives_what_each_request_gives_alone(family: str):
    check(tiny_lm(family, scale=2.0))


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_rows_that_begin_late_see_their_sliding_window(family: str):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    check(tiny_lm(family, scale=2.0, sliding_window=4, layer_types=kinds, use_sliding_window=True))


def test_sdpa_sees_the_same_rows():
    lm = tiny_lm(scale=2.0)
    lm.model.set_attn_implementation("sdpa")
    try:
        check(lm)
    finally:
        lm.model.set_attn_implementation("eager")


@pytest.mark.parametrize(("spare", "tokens"), [(1, 1), (2, 8), (5, 20)])
def test_buffers_that_move_and_prompts_read_in_parts_change_nothing(
    spare: int, tokens: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(in_place, "_SPARE", spare)
    monkeypatch.setattr(in_place, "_TOKENS", tokens)
    check(tiny_lm(scale=2.0))


def hybrid() -> LanguageModel:
    """Convolutions and attention by turns: it keeps more of the past than keys and values."""
    config = AutoConfig.for_model(
        "lfm2",
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention", "conv"],
        eos_token_id=END,
        pad_token_id=END,
        bos_token_id=END,
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    spread(model, 0.4)
    return LanguageModel(model.eval(), tokenizer(), "hybrid")


def test_models_that_keep_more_are_read_with_their_own_cache():
    lm = hybrid()
    assert isinstance(open_reader(lm, 4), LibraryReader)
    assert isinstance(open_reader(tiny_lm(), 4), InPlaceReader)
    check(lm)


class Work:
    """Counts the forward passes of a network, and their rows and columns."""

    def __init__(self, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        open_reader(lm, 1)  # which is tried before
        forward = in_place.last_logits

        def counted(model: LanguageModel, ids: Tensor, *rest: Any, **options: Any) -> Any:
            if model is lm:
                self.shapes.append((ids.shape[0], ids.shape[1]))
            return forward(model, ids, *rest, **options)

        monkeypatch.setattr(in_place, "last_logits", counted)


def test_a_prompt_is_read_once_and_ended_rows_are_not_computed(monkeypatch: pytest.MonkeyPatch):
    """Three samples each of prompts of 2 and 4 tokens and lengths 1 to 6, in 4 slots."""
    lm = tiny_lm()
    stops, seen = [2, 1, 6, 3, 1, 2], [0] * 6

    def sample(logits: Tensor, active: Tensor) -> Tensor:
        tokens = []
        for row in active.tolist():
            seen[row] += 1
            tokens.append(END if seen[row] == stops[row] else 5)
        return torch.tensor(tokens)

    work = Work(lm, monkeypatch)
    queue = [[7, 8]] * 3 + [[7, 8, 9, 10]] * 3
    found = generate(lm, queue, sample, max_new_tokens=9, batch_size=4)
    assert [len(r.ids) for r in found] == stops
    prefills = [shape for shape in work.shapes if shape[1] > 1]
    assert prefills == [(2, 4)], "both prompts in one pass, not again for their further samples"
    decoded = [rows for rows, width in work.shapes if width == 1]
    assert sum(decoded) == sum(stops) - len(stops), "the last token of a row is never read"
    # Row 1 ends at once and 4 begins; then 0 and 4 end and 5 begins; 2 needs 5 steps.
    assert decoded == [3, 2, 2, 1, 1]


def test_refilled_rows_keep_the_batch_full(monkeypatch: pytest.MonkeyPatch):
    lm = tiny_lm()
    work = Work(lm, monkeypatch)
    seen = [0] * 40

    def sample(logits: Tensor, active: Tensor) -> Tensor:
        for row in active.tolist():
            seen[row] += 1
        return torch.tensor([END if seen[r] == 1 + r % 8 else 5 for r in active.tolist()])

    generate(lm, [[2 + i, 5] for i in range(40)], sample, max_new_tokens=9, batch_size=8)
    assert seen == [1 + r % 8 for r in range(40)]
    decoded = [rows for rows, width in work.shapes if width == 1]
    steps = sum(seen) - len(seen)
    assert sum(decoded) == steps
    assert len(decoded) < 1.5 * steps / 8


def test_memory_is_reused_and_grows_only_with_what_is_in_use():
    """A hundred rows pass through two slots; each takes 1 + 20 tokens."""
    lm = tiny_lm()
    reader = InPlaceReader(lm, 2)
    reader.begin([[5], [6]])
    for step in range(200):
        reader.read(torch.tensor([7, 8]))
        if step % 20 == 19:
            reader.keep([1])
            reader.begin([[5]])
    assert reader.capacity <= 2 * 21 + 2 * in_place._SPARE
    assert {layer.keys.shape[2] for layer in reader.cache.layers} == {reader.capacity}


def test_a_companion_reads_in_step_while_rows_come_and_go():
    own, other = tiny_lm(scale=2.0), tiny_lm("qwen3", seed=2, scale=2.0)
    for batch_size in (1, 3, None):
        sampler = decoding_sampler(Decoding(), len(QUEUE), seed=SEED)
        made = generate(
            own,
            QUEUE,
            sampler,
            max_new_tokens=LIMIT,
            batch_size=batch_size,
            companion=Companion(other, 1.0),
        )
        assert made == queued(other, Decoding(), None)
    mixed = hybrid()
    pair = replace(Companion(mixed, 0.0), weight=0.0)
    sampler = decoding_sampler(Decoding(), len(QUEUE), seed=SEED)
    made = generate(own, QUEUE, sampler, max_new_tokens=LIMIT, batch_size=3, companion=pair)
    assert made == queued(own, Decoding(), None)
