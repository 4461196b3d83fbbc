"""Logits that are no numbers stop whoever reads them, with the row, the layer and the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tdistill.evidence.rows import Row
from tdistill.models.decoding import Decoding
from tdistill.models.finite import NonFiniteError, keeping_bad_batch
from tdistill.models.generation import Companion, decoding_sampler, generate
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import lay_out, pack
from tdistill.models.likelihood import response_log_probs
from tdistill.models.scores import HeadMode, step_scores
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.source import LiveTeacher
from tiny import VOCABULARY, tiny_lm

INF = float("inf")
BAD = 9  # the token after which a broken model gives no numbers
ROWS = [Row((3, 4, 5), (7, 8, 1), True), Row((8,), (30, BAD, 12, 2), False)]


def breaks_at(token: int = BAD, layer: int = 1, value: float = INF) -> LanguageModel:
    """A sound model, but that one layer overflows where it reads a token."""
    lm = tiny_lm(seed=3)
    model: Any = lm.model
    marks: list[torch.Tensor] = []
    model.model.register_forward_pre_hook(
        lambda module, args, inputs: marks.append(inputs["input_ids"] == token), with_kwargs=True
    )
    model.model.layers[layer].mlp.register_forward_hook(
        lambda module, args, made: made.masked_fill(marks[-1][..., None], value)
    )
    return lm


def damaged(value: float = float("nan")) -> LanguageModel:
    lm = tiny_lm(seed=3)
    with torch.no_grad():
        lm.model.get_parameter("model.layers.2.mlp.up_proj.weight")[3, 4] = value
    return lm


@pytest.mark.parametrize("head", ["auto", "full"])
@pytest.mark.parametrize("value", [INF, float("nan")])
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_a_step_that_is_read_names_its_row_and_layer(head: HeadMode, value: float, side: str):
    lm = breaks_at(value=value)
    layout = pack(ROWS, pad_id=0, padding_side=side)
    with pytest.raises(NonFiniteError, match=r"in row 1 after token 3 of 4; .*layers\.1\.mlp") as e:
        step_scores(lm.model, layout, vocabulary_size=VOCABULARY, head=head)
    batch = {"row": 1, "position": 2, "first_layer": "model.layers.1.mlp"}
    assert {name: e.value.batch[name] for name in batch} == batch
    assert e.value.batch["input_ids"] == [[3, 4, 5, 7, 8], [8, 30, BAD, 12]]


@torch.no_grad()
def test_responses_that_share_their_prompt_are_told_apart():
    rows = [Row((5,) * 9, (6, token, 8, 1), True) for token in (2, BAD, 3)]
    with pytest.raises(NonFiniteError, match="after token 11 of 12") as caught:
        step_scores(breaks_at().model, lay_out(rows, 1), vocabulary_size=VOCABULARY)
    row = caught.value.batch["row"]
    assert caught.value.batch["input_ids"][row] == [5] * 9 + [6, BAD, 8]


def greedy(lm: LanguageModel, **options: Any) -> Any:
    sampler = decoding_sampler(Decoding(greedy=True), 2, seed=0)
    return generate(lm, [[3, 4], [8, BAD]], sampler, max_new_tokens=4, **options)


READS: list[Callable[[LanguageModel], Any]] = [
    greedy,
    lambda lm: greedy(tiny_lm(), companion=Companion(lm, 0.5)),
    lambda lm: LiveTeacher(lm, CaptureConfig()).evidence(ROWS),
    lambda lm: response_log_probs(lm, ROWS, vocabulary_size=VOCABULARY, batch_size=2),
]


@pytest.mark.parametrize("read", READS)
def test_every_way_of_reading_stops(read: Callable[[LanguageModel], Any]):
    with pytest.raises(NonFiniteError, match=r"LlamaForCausalLM.* in row \d .*layers\.1\.mlp"):
        read(breaks_at())


@pytest.mark.parametrize("value", [float("nan"), INF, -INF])
@pytest.mark.parametrize("read", READS)
def test_a_damaged_weight_is_named(read: Callable[[LanguageModel], Any], value: float):
    with pytest.raises(NonFiniteError, match=r"weight model\.layers\.2\.mlp\.up_proj\.weight"):
        read(damaged(value))


def test_generation_stops_at_the_step_after_what_it_has_read():
    lm = breaks_at()
    steps: list[int] = []

    def sample(logits: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        steps.append(len(active))
        return torch.tensor([BAD if len(steps) == 3 else 5] * len(active))

    with pytest.raises(NonFiniteError, match="in row 0 after token 5 of 5"):
        generate(lm, [[3, 4]], sample, max_new_tokens=9)
    assert len(steps) == 4  # asked once more: whether there are numbers is read with the tokens


def test_a_sampler_that_cannot_take_the_logits_is_not_blamed_for_them():
    def sample(logits: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(logits.softmax(-1), 1).squeeze(1)

    with pytest.raises(NonFiniteError, match="in row 0 after token 3 of 3"):
        generate(breaks_at(), [[3, 4, BAD]], sample, max_new_tokens=9)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        generate(breaks_at(), [[3, 4]], lambda logits, active: active // 0, max_new_tokens=9)


@pytest.mark.parametrize("head", ["auto", "full"])
@torch.no_grad()
def test_tokens_that_a_model_rules_out_are_no_fault(head: HeadMode):
    lm = tiny_lm()
    model: Any = lm.model
    bias = torch.zeros(VOCABULARY)
    bias[40:] = -INF
    model.lm_head.bias = nn.Parameter(bias)
    scores = step_scores(model, pack(ROWS, pad_id=0), vocabulary_size=VOCABULARY, head=head)
    log_probs = scores.rows(0, len(scores)).log_softmax(-1)
    assert bool((log_probs[:, 40:] == -INF).all())
    assert log_probs[:, :40].exp().sum(1) == pytest.approx([1.0] * len(scores))
    assert len(greedy(lm)) == 2


def test_the_batch_is_kept_where_it_can_be_looked_at(tmp_path: Path):
    path = tmp_path / "failed" / "rollouts.json"
    with (
        pytest.raises(NonFiniteError, match=r"the batch is in .*rollouts\.json"),
        keeping_bad_batch(path),
    ):
        greedy(breaks_at())
    kept = json.loads(path.read_text())
    assert kept["input_ids"] == [[3, 4], [8, BAD]]
    assert (kept["row"], kept["position"], kept["first_layer"]) == (1, 1, "model.layers.1.mlp")
    with keeping_bad_batch(tmp_path / "none.json"):
        greedy(tiny_lm())
    assert not (tmp_path / "none.json").exists()
