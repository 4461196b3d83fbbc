"""Precision, place and quantisation of weights; a vocabulary is summed in float32 in any case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tdistill.evidence.rows import Row
from tdistill.models import language_model
from tdistill.models.language_model import LanguageModel, load, save, saved_dtype
from tdistill.models.weights import WeightsConfig
from tdistill.teacher.capture import capture
from tdistill.teacher.config import CaptureConfig, RolloutConfig
from tdistill.teacher.rollouts import plan_units, sample_unit
from tdistill.teacher.source import LiveTeacher
from tiny import tiny_lm

CAPTURE = CaptureConfig(0.9, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in bfloat16."""
    lm = tiny_lm("llama", seed=1)
    save(LanguageModel(lm.model.to(torch.bfloat16), lm.tokenizer, "m"), tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_auto_is_float32_on_a_cpu_and_a_name_is_that(folder: Path, wanted: Any, found: torch.dtype):
    lm = load(folder, device="cpu", weights=WeightsConfig(wanted))
    assert {weight.dtype for weight in lm.model.parameters()} == {found}


def options_on(
    device: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: Any
) -> dict[str, Any]:
    """What is passed to transformers for a device that need not be here."""
    seen: dict[str, Any] = {}

    def read(path: str, **options: Any) -> Any:
        seen.update(options)
        return tiny_lm("llama").model

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "_device", lambda wanted: wanted or device)
        patch.setattr(language_model, "_load_weights", read)
        patch.setattr(language_model, "_placed", lambda model, *_: model)
        load(folder, weights=WeightsConfig(**changes))
    return seen


def test_auto_is_the_checkpoints_own_on_cuda(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert options_on("cuda", monkeypatch, folder)["dtype"] == "auto"
    assert options_on("cpu", monkeypatch, folder)["dtype"] == torch.float32
    found = options_on("cuda", monkeypatch, folder, dtype="float32")
    assert found["dtype"] == torch.float32
    assert "device_map" not in found
    assert "attn_implementation" not in found


def test_place_attention_and_quantisation_reach_transformers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    how = {"device_map": "balanced", "attention": "flash_attention_2", "quantise": "4bit"}
    found = options_on("cuda", monkeypatch, folder, **how)
    assert found["device_map"] == "balanced"
    assert found["attn_implementation"] == "flash_attention_2"
    config = found["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    eight = options_on("cuda", monkeypatch, folder, quantise="8bit")["quantization_config"]
    assert eight.load_in_8bit


def test_layers_that_accelerate_places_stay_there(folder: Path):
    lm = load(folder, weights=WeightsConfig("float32", device_map="cpu", attention="eager"))
    assert lm.device.type == "cpu"
    assert lm.model.config._attn_implementation == "eager"
    rows = [Row((3, 4, 5), (6, 7, 1), True)]
    plain = load(folder, device="cpu")
    found, expected = (LiveTeacher(x, CAPTURE).evidence(rows) for x in (lm, plain))
    assert torch.equal(found.sets.ids, expected.sets.ids)
    assert torch.equal(found.sets.log_probs, expected.sets.log_probs)


def test_where_accelerate_places_layers_nothing_is_moved():
    class Spread:
        def to(self, *_: Any) -> Any:
            raise ValueError("You can't move a model that has some modules offloaded")

    model: Any = Spread()
    placed = language_model._placed(model, None, WeightsConfig(device_map="auto"))
    assert placed is model


def test_a_model_that_comes_quantised_is_not_moved(monkeypatch: pytest.MonkeyPatch):
    class Quantised:
        is_quantized = True

        def to(self, *_: Any) -> Any:
            raise ValueError("`.to` is not supported for `4-bit` or `8-bit` bitsandbytes models")

    model: Any = Quantised()
    assert language_model._placed(model, None, WeightsConfig()) is model


def test_what_is_saved_is_in_the_checkpoints_precision(folder: Path, tmp_path: Path):
    assert saved_dtype(folder, "auto") == "bfloat16"
    assert saved_dtype(folder, "float16") == "float16"
    save(tiny_lm("llama"), tmp_path / "plain")
    assert saved_dtype(tmp_path / "plain", "auto") == "float32"


def test_the_distribution_of_half_precision_logits_is_summed_in_float32():
    """The log-normaliser of bfloat16 logits, computed in bfloat16, is off by hundredths."""
    generator = torch.Generator().manual_seed(0)
    logits = (4.0 * torch.randn(64, 4096, generator=generator)).to(torch.bfloat16)
    kept, exact = capture(logits, CAPTURE), logits.double().logsumexp(-1)
    assert kept.log_probs.dtype == torch.float32
    assert float((kept.log_normaliser.double() - exact).abs().max()) < 2.0**-9
    assert float((logits.logsumexp(-1).double() - exact).abs().max()) > 2.0**-7


def test_rollouts_of_a_half_precision_teacher_have_the_evidence_of_its_own_pass(folder: Path):
    """Sets differ only where bfloat16 itself differs from one batch to another."""
    lm = load(folder, device="cpu", weights=WeightsConfig("bfloat16"))
    config = RolloutConfig(n=4, max_new_tokens=8, batch_size=4, capture=CAPTURE)
    (unit,) = plan_units([(3, 4, 5)], config)
    made = sample_unit(lm, unit, config)
    assert all(r.evidence.sets.log_probs.dtype == torch.float32 for r in made)
    rows = [response.row for response in made]
    full = LiveTeacher(load(folder, device="cpu"), CAPTURE).evidence(rows)
    action = torch.cat([response.evidence.action_log_prob for response in made])
    assert float((action - full.action_log_prob).abs().mean()) < 0.05


@pytest.mark.parametrize(
    ("rank", "devices", "place"),
    [(None, 4, "cuda"), ("0", 4, "cuda:0"), ("3", 4, "cuda:3"), ("3", 1, "cuda:0")],
)
def test_a_launched_process_puts_its_models_on_its_own_device(
    rank: str | None, devices: int, place: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    assert language_model._device(None) == place
    assert language_model._device("cpu") == "cpu"
