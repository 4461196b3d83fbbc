"""Which layers a student keeps: by brute force, by hooks, and where the answer is known."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn

from tdistill.core import forward_kl
from tdistill.errors import ModelError
from tdistill.models.language_model import LanguageModel, model_fingerprint
from tdistill.models.layout import Pair
from tdistill.training import layer_choice
from tdistill.training.bypass import layer_stack
from tdistill.training.config import LayerRule
from tdistill.training.layer_choice import LayerChoice, choose_layers
from tdistill.training.student import drop_layers
from tiny import FAMILIES, by_family, tiny_lm

RESPONSES = [tuple(5 + (3 * i + j * j) % 9 for j in range(2 + i % 4)) for i in range(9)]
ROWS = [Pair((2 + i, 3), response) for i, response in enumerate(RESPONSES)]
STEPS = sum(len(row.response_ids) for row in ROWS)
TEACHERS = [*FAMILIES, "falcon"]  # whose blocks return tuples


def choose(lm: LanguageModel, keep: int, rule: LayerRule) -> LayerChoice:
    return choose_layers(lm, keep, rule, ROWS, measured_tokens=10_000)


def teacher(family: str, depth: int = 4) -> LanguageModel:
    changes = {"n_layer" if family == "gpt2" else "num_hidden_layers": depth}
    return tiny_lm(family, scale=3.0, **changes)


def kl(whole: LanguageModel, kept: tuple[int, ...]) -> float:
    """Nats a token, row by row, from the logits of a model that was really made."""
    student, total = drop_layers(whole, kept), 0.0
    for row in ROWS:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        with torch.no_grad():
            ours, theirs = (lm.model(ids).logits.log_softmax(-1)[0] for lm in (student, whole))
        read = slice(len(row.prompt_ids) - 1, -1)
        total += float(forward_kl(theirs[read], ours[read]).sum())
    return total / STEPS


@pytest.mark.parametrize("family", by_family(TEACHERS))
def test_the_loss_of_a_bypass_is_that_of_the_student_it_stands_for(family: str):
    lm = teacher(family)
    choice = choose(lm, 1, "greedy")
    left = set(range(4))
    for number, loss in zip(choice.removed, choice.forward_kl, strict=True):
        tried = {n: kl(lm, tuple(sorted(left - {n}))) for n in left}
        assert loss == pytest.approx(tried[number], rel=1e-3, abs=1e-6)
        assert tried[number] == pytest.approx(min(tried.values()), rel=1e-3, abs=1e-6)
        left.remove(number)
    assert choice.kept == tuple(left)
    assert choice.measured_steps == STEPS


@pytest.mark.parametrize("family", by_family(TEACHERS))
def test_influence_is_one_minus_the_cosine_of_before_and_after(family: str):
    lm = teacher(family)
    _, layers = layer_stack(lm.model)
    sums = [0.0] * len(layers)

    def watch(number: int, length: int) -> Any:
        def look(module: nn.Module, given: Any, named: Any, made: Any) -> None:
            before = given[0] if given else named["hidden_states"]
            after = made[0] if isinstance(made, tuple) else made
            for x, y in zip(before[0, length - 1 :], after[0, length - 1 :], strict=True):
                sums[number] += 1 - float(x @ y / (x.norm() * y.norm()))

        return look

    for row in ROWS:
        hooks = [
            layer.register_forward_hook(watch(n, len(row.prompt_ids)), with_kwargs=True)
            for n, layer in enumerate(layers)
        ]
        with torch.no_grad():
            lm.model(torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]]))
        for hook in hooks:
            hook.remove()
    expected = [total / STEPS for total in sums]
    found = choose(lm, 2, "influence")
    assert found.influence == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found.kept == tuple(sorted(sorted(range(4), key=lambda n: -expected[n])[:2]))
    assert found.removed == found.forward_kl == ()


@pytest.mark.parametrize("rule", ["influence", "greedy"])
@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_layer_that_does_nothing_goes_first(rule: LayerRule, number: int):
    lm = teacher("llama")
    layer: Any = layer_stack(lm.model)[1][number]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    choice = choose(lm, 3, rule)
    assert choice.kept == tuple(n for n in range(4) if n != number)
    assert choice.influence[number] == pytest.approx(0, abs=1e-6)
    assert min(x for n, x in enumerate(choice.influence) if n != number) > 1e-3
    if rule == "greedy":
        assert choice.removed == (number,)
        assert choice.forward_kl[0] == pytest.approx(0, abs=1e-6)


def test_greedy_finds_the_pair_that_influence_misses():
    """Layers 1 and 3 write much where nobody reads; 0 and 2 little where the output layer does."""
    lm = teacher("llama")
    head, embedding = lm.model.get_output_embeddings(), lm.model.get_input_embeddings()
    assert isinstance(head, nn.Linear)
    assert isinstance(embedding, nn.Embedding)
    unread = torch.arange(16) < 4
    with torch.no_grad():
        head.weight[:, unread] = 0
        embedding.weight[:, 0] = 8.0  # norms feel little else
        for number, layer in enumerate(layer_stack(lm.model)[1]):
            for name, weight in layer.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight[~unread if number % 2 else unread] = 0
                    weight.mul_(3.0 if number % 2 else 1.0)
                elif "proj" in name:
                    weight[:, unread] = 0
    losses = {kept: kl(lm, kept) for kept in combinations(range(4), 2)}
    assert min(losses, key=losses.__getitem__) == (0, 2)
    assert choose(lm, 2, "influence").kept == (1, 3)
    found = choose(lm, 2, "greedy")
    assert found.kept == (0, 2)
    assert sorted(found.removed) == [1, 3]


def test_only_layers_that_were_cheap_are_tried_again(monkeypatch: pytest.MonkeyPatch):
    tried: list[int] = []
    original = layer_choice._losses_without

    def count(layers: Any, numbers: list[int], *rest: Any) -> dict[int, float]:
        tried.append(len(numbers))
        return original(layers, numbers, *rest)

    monkeypatch.setattr(layer_choice, "_losses_without", count)
    monkeypatch.setattr(layer_choice, "_TRIED", 3)
    choose(teacher("llama", 6), 2, "greedy")
    assert tried == [6, 3, 3, 3]


@pytest.mark.parametrize("rule", ["even", "influence", "greedy"])
@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_any_number_can_be_kept_in_ascending_order(rule: LayerRule, keep: int):
    lm = teacher("gemma2")
    choice = choose(lm, keep, rule)
    assert len(choice.kept) == keep
    assert list(choice.kept) == sorted(set(choice.kept))
    assert len(choice.removed) == len(choice.forward_kl) == (4 - keep if rule == "greedy" else 0)
    assert rule in choice.text()
    assert ("before training" in choice.text()) == (rule == "greedy" and keep < 4)


def test_the_teacher_is_as_it_was():
    lm = teacher("llama")
    before = model_fingerprint(lm.model)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = lm.model(ids).logits
    choose(lm, 1, "greedy")
    assert model_fingerprint(lm.model) == before
    assert not any("forward" in vars(module) for module in lm.model.modules())
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, expected)


def test_few_tokens_are_read_evenly_spread():
    lm = teacher("llama")
    rows = [Pair((2, 3), (5, 6, 7 + i % 3)) for i in range(40)]
    assert choose_layers(lm, 2, "greedy", rows, measured_tokens=50).measured_steps == 30
    assert choose_layers(lm, 2, "greedy", rows, measured_tokens=1).measured_steps == 3
    assert choose_layers(lm, 2, "greedy", rows, measured_tokens=9999).measured_steps == 120
    assert choose_layers(lm, 2, "even", rows).measured_steps == 0


def test_the_order_of_batches_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    whole = choose(teacher("qwen3"), 2, "greedy")
    monkeypatch.setattr(layer_choice, "_TOKENS_A_PASS", 8)
    parts = choose(teacher("qwen3"), 2, "greedy")
    assert parts.kept == whole.kept
    assert parts.influence == pytest.approx(whole.influence, rel=1e-4)
    assert parts.forward_kl == pytest.approx(whole.forward_kl, rel=1e-4)


@pytest.mark.parametrize("rule", ["even", "influence", "greedy"])
@pytest.mark.parametrize("keep", [0, 5])
def test_numbers_that_cannot_be_kept_are_refused(rule: LayerRule, keep: int):
    with pytest.raises(ModelError, match=f"expected from 1 to the teacher's 4, found {keep}"):
        choose(teacher("llama"), keep, rule)


@pytest.mark.parametrize("rule", ["influence", "greedy"])
def test_nothing_to_measure_on_is_refused(rule: LayerRule):
    with pytest.raises(ModelError, match=f"{rule} is measured: expected responses"):
        choose_layers(teacher("llama"), 2, rule)


def test_a_model_without_one_stack_is_refused_before_any_pass():
    lm = teacher("llama")
    lm.model.second = nn.ModuleList([nn.Linear(1, 1) for _ in range(4)])
    with pytest.raises(ModelError, match="expected one stack of 4 layers"):
        choose(lm, 2, "greedy")
