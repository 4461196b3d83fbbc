"""The offline engine of vLLM, against a module that answers as it does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from serving import Server
from tdistill.errors import ModelError
from tdistill.evidence.evidence import concatenate
from tdistill.evidence.rows import Row
from tdistill.models.language_model import save, tokenizer_fingerprint
from tdistill.teacher.config import CaptureConfig, VllmConfig
from tdistill.teacher.listing.teacher import ListingTeacher
from tdistill.teacher.listing.vllm_engine import VllmEngine
from tdistill.teacher.rollouts import plan_units
from tdistill.teacher.source import LiveTeacher
from teaching import END, PROMPTS, settings, teacher
from tiny import tokenizer

CAPTURE = CaptureConfig(captured_top_p=0.9, max_set_size=32)


class Engine:
    """What vllm.LLM gives, from the answers of the local server."""

    made: dict[str, Any]
    spoil = staticmethod(lambda response: None)

    def __init__(self, **options: Any) -> None:
        Engine.made = options
        self.answers = Server(teacher())
        self.answers.server_close()
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=128))

    def get_tokenizer(self) -> Any:
        return tokenizer()

    def generate(self, prompts: list[Any], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        pairs = zip(prompts, params, strict=True)
        return [self._output(prompt["prompt_token_ids"], vars(how)) for prompt, how in pairs]

    def _output(self, prompt: list[int], how: dict[str, Any]) -> Any:
        assert how["detokenize"] is False
        asked = {"model": "tiny", "prompt": prompt, "top_p": 1.0, "logprobs": None, "seed": 0}
        (choice,) = self.answers.answer(asked | how)["choices"]
        tops = (choice.get("logprobs") or {}).get("top_logprobs", ())
        response = SimpleNamespace(
            token_ids=choice["token_ids"],
            finish_reason=choice["finish_reason"],
            logprobs=[_listed({k.split(":")[1]: v for k, v in top.items()}) for top in tops],
        )
        self.spoil(response)
        read = [
            None if x is None else _listed({k: v["logprob"] for k, v in x.items()})
            for x in choice.get("prompt_logprobs", ())
        ]
        return SimpleNamespace(outputs=[response], prompt_logprobs=read)


def _listed(top: dict[str, float]) -> dict[int, Any]:
    return {int(token): SimpleNamespace(logprob=value) for token, value in top.items()}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Engine]]:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    yield Engine
    Engine.spoil = staticmethod(lambda response: None)


def listing(path: Path, **changes: Any) -> ListingTeacher:
    chosen: dict[str, Any] = {
        "engine": VllmEngine(str(path), VllmConfig(devices=2, max_model_len=128)),
        "capture": CAPTURE,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer()),
        "vocabulary_size": 64,
        "end_ids": (END,),
        "listed": 32,
        "incomplete": "refuse",
        "unfinished": path / "unfinished",
    }
    return ListingTeacher(**(chosen | changes))


@pytest.mark.usefixtures("vllm")
def test_it_has_the_evidence_of_a_teacher_at_hand(tmp_path: Path):
    asked = listing(tmp_path)
    rolled = [
        x
        for u in plan_units(PROMPTS, settings(capture=CAPTURE))
        for x in asked.sample_unit(u, settings(capture=CAPTURE))
    ]
    scored = asked.score([Row((9,), (33, END), True), Row((3, 4), (5,), False)])
    assert len(rolled) == 15
    for found in (rolled, scored):
        evidence = concatenate([response.evidence for response in found])
        expected = LiveTeacher(teacher(), CAPTURE).evidence([response.row for response in found])
        assert torch.equal(evidence.sets.ids, expected.sets.ids)
        rounding: dict[str, float] = {"rtol": 0, "atol": 2.0**-7}
        torch.testing.assert_close(evidence.sets.log_probs, expected.sets.log_probs, **rounding)
        torch.testing.assert_close(evidence.action_log_prob, expected.action_log_prob, **rounding)
        assert evidence.log_normaliser.isnan().all()


def test_it_is_started_for_raw_log_probabilities_on_the_devices_that_are_named(
    vllm: type[Engine], tmp_path: Path
):
    said = listing(tmp_path).check(tokenizer(), 128)
    assert said.endswith(" in vLLM, 32 tokens listed a step")
    wanted = {"max_logprobs": -1, "logprobs_mode": "raw_logprobs", "generation_config": "vllm"}
    wanted |= {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.9, "max_model_len": 128}
    assert {name: vllm.made[name] for name in wanted} == wanted
    with pytest.raises(ModelError, match="found 129 with the longest prompt"):
        listing(tmp_path).check(tokenizer(), 129)


def test_without_the_package_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r"pip install 'tdistill\[vllm\]', or use backend: server"):
        listing(tmp_path).score([Row((9,), (33,), False)])


def test_what_is_wrong_is_not_kept(vllm: type[Engine], tmp_path: Path):
    vllm.spoil = staticmethod(lambda response: response.logprobs.pop())
    (unit, *_) = plan_units(PROMPTS, settings())
    with pytest.raises(ModelError, match="nothing of it was kept"):
        listing(tmp_path).sample_unit(unit, settings())
    assert not (tmp_path / "unfinished").exists()


def test_another_model_at_the_same_place_is_another_teacher(tmp_path: Path):
    save(teacher(), tmp_path / "m")
    first = listing(tmp_path / "m").identity(CAPTURE)
    assert first == listing(tmp_path / "m").identity(CAPTURE)
    (tmp_path / "m/config.json").write_text("{}")
    assert listing(tmp_path / "m").identity(CAPTURE) != first
