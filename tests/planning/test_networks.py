"""Networks in numbers: counted from configurations, beside the networks themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdistill.models.language_model import load_config
from tdistill.models.weights import WeightsConfig
from tdistill.planning.devices import device_of
from tdistill.planning.networks import network_of, shorter
from tdistill.training.student import drop_layers
from tiny import tiny_lm

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_parameters_are_those_of_the_model(family: str) -> None:
    lm = tiny_lm(family)
    network = network_of(lm.model.config)
    assert network.parameters == lm.num_parameters
    dropped = drop_layers(lm, (0, 2))
    assert shorter(network, (0, 2)).parameters == dropped.num_parameters
    assert shorter(network, (0, 2)).layers == 2


def test_a_token_adds_the_keys_and_values_of_all_layers() -> None:
    assert network_of(tiny_lm("llama").model.config).state == 3 * 2 * 1 * 8
    assert network_of(tiny_lm("gpt2").model.config).state == 3 * 2 * 2 * 8


def test_the_parameters_that_were_published() -> None:
    """7.62 and .49 billion: the cards of Qwen2.5-7B and Qwen2.5-0.5B."""
    teacher, student = (network_of(load_config(STUDIES / f"qwen2.5-{x}")) for x in ("7b", "0.5b"))
    assert (teacher.parameters, student.parameters) == (7_615_616_512, 494_032_768)
    assert (teacher.in_layers, student.tables) == (6_525_618_176, 136_135_552)
    gpu, cpu = device_of("h100"), device_of("cpu")
    plain = WeightsConfig()
    assert teacher.weight_bytes(plain, gpu) == 2 * 7_615_616_512
    assert teacher.weight_bytes(plain, cpu) == 4 * 7_615_616_512
    halved = teacher.weight_bytes(WeightsConfig(quantise="8bit"), gpu)
    assert halved == 2 * teacher.tables + teacher.in_layers
