from __future__ import annotations

import torch
from benchmarks.speed.rounding import as_cached, as_float16, effects, exact_evidence, value_of

from tdistill.evidence.rows import Row
from tdistill.teacher.capture import capture
from tdistill.teacher.config import CaptureConfig
from tiny import tiny_lm

ROWS = [Row((2, 3), (4, 5, 6), True), Row((7,), (8, 9), False)]


def exact(scale: float = 4.0):
    logits = scale * torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    normaliser = logits.logsumexp(-1)
    return logits, exact_evidence(ROWS, logits - normaliser[:, None], normaliser, 0.9, 20)


def test_as_cached_is_what_a_capture_keeps():
    logits, evidence = exact()
    actions = torch.tensor([4, 5, 6, 8, 9])
    kept = capture(logits, CaptureConfig(0.9, 20)).evidence(actions)
    found = as_cached(evidence)
    assert torch.equal(found.sets.log_probs, kept.sets.log_probs)
    assert torch.equal(found.log_normaliser, kept.log_normaliser)
    assert torch.equal(found.action_log_prob, kept.action_log_prob)
    assert 0 < float((value_of(found) - value_of(evidence)).abs().max()) < 0.005


def test_effects_are_small_and_grow_with_the_rounding():
    _, evidence = exact()
    lines = {line["rounding"]: line for line in effects(tiny_lm(), ROWS, evidence)}
    for name in ("gradient of bellman_distill", "gradient of kd"):
        assert 0 < lines["float16"][name] < lines["cache"][name] < 0.01
    assert lines["float16"]["v_rms"] < lines["cache"]["v_rms"] < lines["cache"]["v_max"] < 0.005
    same = as_float16(as_float16(evidence))
    assert torch.equal(value_of(same), value_of(as_float16(evidence)))
