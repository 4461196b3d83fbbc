"""Sampling: the same tokens as transformers, independent rows, and the right frequencies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tdistill.core import TopPSets, top_p_sets
from tdistill.errors import InvalidValueError
from tdistill.models.decoding import Decoding
from tdistill.models.generation import (
    Response,
    Sampler,
    decoding_sampler,
    draw_from_sets,
    generate,
    row_uniforms,
    seed_of,
    uniforms,
)
from tdistill.models.language_model import LanguageModel
from tiny import FAMILIES, VOCABULARY, tiny_lm

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [9], [10, 11, 12], [13, 14], [20, 21, 22, 23]]
END = 1
BELOW_ONE = 1.0 - 2.0**-53  # the largest uniform number


def decode(
    lm: LanguageModel,
    prompts: list[list[int]],
    decoding: Decoding,
    *,
    seed: int = 0,
    limit: int = 16,
) -> list[Response]:
    sampler = decoding_sampler(decoding, len(prompts), seed=seed)
    return generate(lm, prompts, sampler, max_new_tokens=limit)


def theirs(lm: LanguageModel, prompt: list[int], limit: int) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out: Any = lm.model.generate(  # pyright: ignore
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit
        )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_own_greedy(family: str):
    lm = tiny_lm(family)
    found = decode(lm, PROMPTS, Decoding(greedy=True))
    assert [r.ids for r in found] == [theirs(lm, prompt, 16) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_greedy_beyond_a_sliding_window(family: str):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    lm = tiny_lm(family, sliding_window=4, layer_types=kinds, use_sliding_window=True)
    found = decode(lm, PROMPTS, Decoding(greedy=True), limit=20)
    assert [r.ids for r in found] == [theirs(lm, prompt, 20) for prompt in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_dropped_do_not_disturb_the_others(family: str):
    """Rows end at different steps; each gets what it would get alone, and the right logits."""
    lm = tiny_lm(family)
    stops = {0: 3, 1: 1, 2: 9, 3: 6, 4: 2}
    seen: dict[int, list[Tensor]] = {row: [] for row in stops}
    asked: list[list[int]] = []

    def sample(logits: Tensor, active: Tensor) -> Tensor:
        asked.append(active.tolist())
        chosen = []
        for row, scores in zip(active.tolist(), logits, strict=True):
            seen[row].append(scores)
            chosen.append(END if len(seen[row]) == stops[row] else 2 + 7 * row + len(seen[row]))
        return torch.tensor(chosen)

    found = generate(lm, PROMPTS, sample, max_new_tokens=12)
    assert [len(r.ids) for r in found] == [3, 1, 9, 6, 2]
    assert [sorted(a) for a in asked] == [[r for r in stops if stops[r] > s] for s in range(9)]
    for row, response in enumerate(found):
        assert response.ids[-1] == END
        assert response.ended
        sequence = torch.tensor([[*PROMPTS[row], *response.ids[:-1]]])
        with torch.no_grad():
            alone = lm.model(sequence).logits[0, len(PROMPTS[row]) - 1 :, :VOCABULARY]
        torch.testing.assert_close(torch.stack(seen[row]), alone, atol=3e-5, rtol=1e-4)


def test_dropping_rows_keeps_sampled_responses():
    """With the end token switched off nothing is dropped; up to each end the tokens agree."""
    lm = tiny_lm(scale=2.0)
    endless = tiny_lm(scale=2.0)
    endless.model.generation_config.eos_token_id = None
    endless = replace(endless, tokenizer=EndsWith(2**20))
    prompts = [[i] for i in range(2, 26)]
    for decoding in (Decoding(), Decoding(temperature=1.5, sampling_top_p=0.9)):
        dropped = decode(lm, prompts, decoding, seed=1, limit=24)
        kept = decode(endless, prompts, decoding, seed=1, limit=24)
        lengths = {len(r.ids) for r in dropped}
        assert len(lengths) > 4  # rows were dropped at many steps
        for a, b in zip(dropped, kept, strict=True):
            assert b.ids[: len(a.ids)] == a.ids
            assert not b.ended


class EndsWith:
    """Stands for a tokenizer with another end token."""

    def __init__(self, end: int) -> None:
        self.eos_token_id, self.pad_token_id = end, END

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(VOCABULARY)}


def test_a_row_draws_the_same_numbers_whoever_else_is_active():
    """The other prompts change, and with them the steps at which rows leave the batch."""
    lm = tiny_lm(scale=2.0)
    one = [[5], [6], [3, 4], *([i] for i in range(7, 15))]
    other = [[30, 2, 2], [31], [3, 4], *([i, i, 2] for i in range(32, 40))]
    found, differ = set(), 0
    for seed in range(6):
        first, second = (decode(lm, p, Decoding(), seed=seed) for p in (one, other))
        differ += [len(r.ids) for r in first] != [len(r.ids) for r in second]
        assert first[2] == second[2]
        found.add(first[2].ids)
    assert differ > 3
    assert len(found) == 6
    assert max(len(ids) for ids in found) > 4


def split_mix(seed: int, count: int) -> list[float]:
    """The generator as its authors state it, in whole numbers of any size."""
    bits, state, numbers = 2**64 - 1, seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & bits
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & bits
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & bits
        numbers.append(((z ^ (z >> 31)) >> 11) * 2.0**-53)
    return numbers


def test_uniform_numbers_are_those_of_the_published_generator():
    seeds = [0, 7, seed_of("a", 3), 2**62 + 12345]
    found = uniforms(torch.tensor(seeds)[:, None], torch.arange(50))
    assert found.tolist() == [split_mix(seed, 50) for seed in seeds]
    # The first output for seed 0, as other implementations print it.
    assert found[0, 0] == (0xE220A8397B1DCDAF >> 11) * 2.0**-53


def test_uniform_numbers_are_uniform_along_rows_and_across_them():
    seeds = [seed_of(7, row) for row in range(1000)]
    draw = row_uniforms(seeds)
    numbers = torch.stack([draw(torch.arange(1000)) for _ in range(20)])
    assert numbers.dtype == torch.float64
    assert 0.0 <= float(numbers.min()) < 0.001
    assert 0.999 < float(numbers.max()) < 1.0
    expected = torch.full((50,), 20_000 / 50, dtype=torch.float64)
    assert chi_square_p((numbers * 50).long().flatten().bincount(), expected) > 0.01
    assert numbers.T.corrcoef().fill_diagonal_(0.0).abs().max() < 0.95
    assert numbers.corrcoef().fill_diagonal_(0.0).abs().max() < 0.15


def test_a_row_draws_its_own_numbers_whenever_it_draws():
    seeds = [5, 6, 7]
    together, alone = row_uniforms(seeds), row_uniforms(seeds)
    first, second = together(torch.arange(3)), together(torch.arange(3))
    assert torch.equal(alone(torch.tensor([2])), first[2:])
    assert torch.equal(alone(torch.tensor([0, 2]))[1:], second[2:])
    assert torch.equal(alone(torch.tensor([0, 1]))[:1], second[:1])
    several, one = row_uniforms(seeds, each=4), row_uniforms(seeds)
    drawn = torch.cat([several(torch.arange(3)) for _ in range(2)], 1)
    assert torch.equal(drawn, torch.stack([one(torch.arange(3)) for _ in range(8)], 1))


def test_ended_and_cut_are_told_apart_though_padding_is_the_end_token():
    lm = tiny_lm()
    assert lm.pad_id == END
    plan = {0: [5, END], 1: [5, 6], 2: [END], 3: [5, 6]}
    count = {row: 0 for row in plan}

    def sample(logits: Tensor, active: Tensor) -> Tensor:
        chosen = []
        for row in active.tolist():
            chosen.append(plan[row][count[row]])
            count[row] += 1
        return torch.tensor(chosen)

    found = generate(lm, [[2], [3], [4], [END, END]], sample, max_new_tokens=2)
    assert found == [
        Response((5, END), True),
        Response((5, 6), False),
        Response((END,), True),
        Response((5, 6), False),
    ]


def test_every_end_token_ends_a_response():
    lm = tiny_lm()
    lm.model.generation_config.eos_token_id = [END, 60]
    found = generate(lm, [[2], [3]], constant([60, 59]), max_new_tokens=3)
    assert found == [Response((60,), True), Response((59, 59, 59), False)]


def constant(tokens: list[int]) -> Sampler:
    return lambda logits, active: torch.tensor(tokens)[active]


def test_generation_stops_when_all_have_ended():
    calls = []

    def sample(logits: Tensor, active: Tensor) -> Tensor:
        calls.append(len(active))
        return torch.full((len(active),), END)

    generate(tiny_lm(), [[2], [3]], sample, max_new_tokens=50)
    assert calls == [2]


def test_each_response_can_have_a_limit_of_its_own():
    lm = tiny_lm("llama")
    whole = decode(lm, PROMPTS, Decoding(greedy=True))
    limits = [4, 1, 16, 2, 3]
    sampler = decoding_sampler(Decoding(greedy=True), len(PROMPTS), seed=0)
    found = generate(lm, PROMPTS, sampler, max_new_tokens=limits, batch_size=2)
    assert [r.ids for r in found] == [w.ids[:n] for w, n in zip(whole, limits, strict=True)]
    ended = [w.ended and len(w.ids) <= n for w, n in zip(whole, limits, strict=True)]
    assert [r.ended for r in found] == ended


def test_padding_rows_of_the_matrix_are_never_sampled():
    lm = tiny_lm(vocab_size=VOCABULARY + 8)
    lm.model.get_output_embeddings().weight.data[VOCABULARY:] *= 100.0  # pyright: ignore
    for decoding in (Decoding(greedy=True), Decoding(), Decoding(sampling_top_p=0.9)):
        tokens = [t for r in decode(lm, PROMPTS, decoding) for t in r.ids]
        assert max(tokens) < VOCABULARY


def test_an_empty_prompt_is_refused():
    with pytest.raises(InvalidValueError, match="at least one token in each"):
        decode(tiny_lm(), [[3], []], Decoding())


def chi_square_p(observed: Tensor, expected: Tensor) -> float:
    """How likely counts are to be at least this far from what was expected."""
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2.0), statistic / 2.0))


def test_the_frequency_test_itself():
    """From a table: with 4 degrees of freedom 9.488 is passed one time in twenty."""
    expected = torch.full((5,), 10.0)
    far = torch.tensor([(94.88 / 2) ** 0.5, -((94.88 / 2) ** 0.5), 0.0, 0.0, 0.0])
    assert chi_square_p(expected + far, expected) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("mass", [1.0, 0.8])
def test_frequencies_match_the_probabilities(temperature: float, mass: float):
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(1, 12, generator=generator)
    rows, calls = 500, 40
    sampler = decoding_sampler(Decoding(False, temperature, mass), rows, seed=11)
    active = torch.arange(rows)
    drawn = torch.cat([sampler(logits.expand(rows, -1), active) for _ in range(calls)])
    expected = (logits[0] / temperature).softmax(0)
    sets = top_p_sets(expected.log()[None], mass)
    inside = torch.zeros(12, dtype=torch.bool).index_fill(0, sets.ids, True)
    assert bool(inside.all()) == (mass == 1.0)
    expected = torch.where(inside, expected, torch.zeros(12)).double()
    expected /= expected.sum()
    counts = drawn.bincount(minlength=12)
    assert counts[~inside].sum() == 0
    assert chi_square_p(counts[inside], expected[inside] * rows * calls) > 0.01


def test_sampling_from_a_model_follows_its_probabilities():
    lm = tiny_lm(scale=2.0)
    prompts = [[7, 8]] * 4000
    tokens = torch.tensor([r.ids[0] for r in decode(lm, prompts, Decoding(), limit=1)])
    with torch.no_grad():
        expected = 4000 * lm.model(torch.tensor([[7, 8]])).logits[0, -1].softmax(0).double()
    assert expected.min() > 5
    assert chi_square_p(tokens.bincount(minlength=VOCABULARY), expected) > 0.01


def three_steps() -> TopPSets:
    """Sets of 3, 1 and 2 members whose masses are 0.875, 0.5 and 0.75."""
    masses = torch.tensor([0.5, 0.25, 0.125, 0.5, 0.5, 0.25])
    return TopPSets(torch.tensor([9, 4, 6, 2, 8, 3]), masses.log(), torch.tensor([0, 3, 4, 6]))


@pytest.mark.parametrize(
    ("uniform", "expected"),
    [
        (0.0, [9, 2, 8]),
        (0.57, [9, 2, 8]),  # 4/7 of the first set's mass is token 9
        (0.58, [4, 2, 8]),
        (0.66, [4, 2, 8]),  # 2/3 of the third set's mass is token 8
        (0.67, [4, 2, 3]),
        (0.86, [6, 2, 3]),  # after 6/7 comes the last member
        (BELOW_ONE, [6, 2, 3]),
        (1.0, [6, 2, 3]),
    ],
)
def test_draws_invert_the_sums(uniform: float, expected: list[int]):
    draws = torch.full((3,), uniform, dtype=torch.float64)
    assert draw_from_sets(three_steps(), draws).tolist() == expected


def test_a_number_on_the_boundary_draws_the_next_member():
    sets = TopPSets(
        torch.tensor([7, 5, 6]), torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0, 3])
    )
    drawn = [draw_from_sets(sets, torch.tensor([u], dtype=torch.float64)) for u in (0.5, 0.75)]
    assert [int(token) for token in drawn] == [5, 6]


def test_each_step_is_drawn_by_its_own_number():
    draws = torch.tensor([0.9, 0.0, 0.7], dtype=torch.float64)
    assert draw_from_sets(three_steps(), draws).tolist() == [6, 2, 3]


@pytest.mark.parametrize("mass", [1.0, 0.99])
@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, BELOW_ONE])
def test_a_token_without_mass_is_never_drawn(
    uniform: float, mass: float, monkeypatch: pytest.MonkeyPatch
):
    def numbers(*_: Any, **__: Any) -> Any:
        return lambda rows: torch.full((len(rows),), uniform, dtype=torch.float64)

    monkeypatch.setattr("tdistill.models.generation.row_uniforms", numbers)
    impossible = float("-inf")
    logits = torch.tensor([[impossible, 1.0, 0.0, impossible], [impossible] * 3 + [2.0]])
    drawn = decoding_sampler(Decoding(sampling_top_p=mass), 2, seed=0)(logits, torch.arange(2))
    assert drawn.tolist() == [1 if uniform < 0.5 else 2, 3]
