"""Traced memory beside what a real pass takes from the allocator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig

from tdistill.models.head_form import body_of
from tdistill.planning.networks import Network, built, network_of
from tdistill.planning.tracing import reading_bytes, update_bytes

ROWS, LENGTH = 4, 96


def real_peak(work: Callable[[], None]) -> int:
    """Most bytes that tensors took at once, by every allocation that was made."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events = watched.profiler.kineto_results.events()  # pyright: ignore
    sizes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = most = 0
    for _, size in sizes:
        now += size
        most = max(most, now)
    return most


@pytest.fixture(scope="module")
def network() -> Network:
    """Six layers, so that two of them are extrapolated."""
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return network_of(config)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_takes_what_was_traced(network: Network, checkpointing: bool) -> None:
    model = built(network.config, "cpu").train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)

    def update() -> None:
        ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
        states = body_of(model)(input_ids=ids, use_cache=False).last_hidden_state
        (states * states).sum().backward()

    traced = update_bytes(network, ROWS, LENGTH, checkpointing=checkpointing)
    assert traced == pytest.approx(real_peak(update), rel=0.2)


def test_a_reading_takes_what_was_traced(network: Network) -> None:
    model = built(network.config, "cpu").eval()

    @torch.no_grad()
    def read() -> None:
        body_of(model)(input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long), use_cache=False)

    assert reading_bytes(network, ROWS, LENGTH) == pytest.approx(real_peak(read), rel=0.2)


def test_checkpointing_and_half_precision_take_less(network: Network) -> None:
    whole = update_bytes(network, ROWS, LENGTH)
    assert update_bytes(network, ROWS, LENGTH, checkpointing=True) < 0.5 * whole
    assert update_bytes(network, ROWS, LENGTH, bf16=True) < 0.8 * whole
    assert update_bytes(network, 2 * ROWS, LENGTH) == pytest.approx(2 * whole, rel=0.1)
