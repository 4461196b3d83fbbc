"""What is read at the states of a model's own responses, against dense distributions."""

from __future__ import annotations

import pytest
import torch
from judging import ROWS, dense_log_probs, student, teacher
from torch import Tensor

from tdistill.evaluation.policy import log_policy, read_own_states
from tdistill.models.decoding import Decoding

DECODINGS = {
    "greedy": Decoding(greedy=True),
    "sample": Decoding(),
    "cold": Decoding(temperature=0.5),
    "nucleus": Decoding(temperature=0.7, sampling_top_p=0.8),
}


def nucleus(probs: Tensor, mass: float) -> Tensor:
    """The fewest likeliest tokens that hold the mass, renormalised: by sorting."""
    order = probs.argsort(descending=True, stable=True)
    before = probs[order].cumsum(0) - probs[order]
    kept = torch.zeros_like(probs).index_fill(0, order[before < mass], 1.0) * probs
    return kept / kept.sum()


def drawn_from(log_probs: Tensor, decoding: Decoding) -> Tensor:
    """Probabilities that a decoding draws from, a step at a time."""
    if decoding.greedy:
        return log_probs.exp()
    probs = (log_probs / decoding.temperature).softmax(-1)
    return torch.stack([nucleus(step, decoding.sampling_top_p) for step in probs])


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("name", DECODINGS)
def test_every_sum_equals_the_dense_one(name: str, batch_size: int):
    decoding = DECODINGS[name]
    sizes = {"vocabulary_size": 64, "batch_size": batch_size}
    found = read_own_states(ROWS, decoding, student(), teacher(), **sizes)
    for i, row in enumerate(ROWS):
        own, target = dense_log_probs(student(), row), dense_log_probs(teacher(), row)
        policy = drawn_from(own, decoding)
        steps = torch.arange(len(own))
        expected = {
            "teacher_log_prob": target[steps, list(row.response_ids)].sum(),
            "entropy": -torch.xlogy(policy, policy).sum(),
            "reverse_kl": (torch.xlogy(policy, policy) - policy * target).sum(),
            "forward_kl": (target.exp() * (target - own)).sum(),
        }
        for quantity, value in expected.items():
            assert found.total(quantity)[i] == pytest.approx(float(value), rel=1e-4), quantity
        assert found.tokens[i] == len(row.response_ids)
        kl = (target.exp() * (target - own)).sum(1)
        places = [slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 8)]
        by_place = [float(kl[part].sum()) for part in places]
        assert found.by_place["forward_kl"][i] == pytest.approx(by_place, rel=1e-4)
        assert found.tokens_by_place[i].tolist() == [len(kl[part]) for part in places]


def test_a_sharper_policy_has_less_entropy_and_a_nucleus_less_still():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))

    def entropy(decoding: Decoding) -> float:
        return float(torch.special.entr(log_policy(logits, decoding).exp()).sum())

    found = [entropy(DECODINGS[name]) for name in ("sample", "cold")]
    narrow = entropy(Decoding(temperature=0.5, sampling_top_p=0.8))
    assert found == sorted(found, reverse=True)
    assert narrow < found[1]


def test_a_model_beside_itself_diverges_nowhere():
    found = read_own_states(
        ROWS, Decoding(), teacher(), teacher(), vocabulary_size=64, batch_size=4
    )
    assert abs(found.total("reverse_kl")).max() < 1e-5
    assert abs(found.total("forward_kl")).max() < 1e-5
