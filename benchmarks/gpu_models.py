"""Models of random weights, rows and loss problems for ``benchmarks.gpu``: nothing is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tdistill.core import TopPSets, offsets_of
from tdistill.models.language_model import LanguageModel, load, save

END = 1


@dataclass(frozen=True)
class Sizes:
    """How large things are.

    Attributes:
        hidden: width of both models.
        teacher_layers: of the teacher.
        student_layers: of the student.
        vocabulary: of both.
        rows: of an update.
        prompt: tokens of a prompt.
        response: tokens of a response.
        tokens: most tokens of a rollout.
        repetitions: of a measurement.
    """

    hidden: int
    teacher_layers: int
    student_layers: int
    vocabulary: int
    rows: int
    prompt: int
    response: int
    tokens: int
    repetitions: int

    def shape(self, *, n: int) -> dict[str, int]:
        """Of rows with ``n`` responses to each prompt."""
        lengths = {"prompt": self.prompt, "response": self.response}
        return {"rows": self.rows, "n": n} | lengths

    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """Prompts of two lengths."""
        generator = torch.Generator().manual_seed(0)
        lengths = [self.prompt, self.prompt - 3] * 4
        return tuple(
            tuple(torch.randint(2, self.vocabulary, (n,), generator=generator).tolist())
            for n in lengths
        )

    def problem(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, TopPSets]:
        """Hidden states, an output layer, and sets of a median of 4 members, some steps without."""
        generator = torch.Generator().manual_seed(0)
        steps, width = self.rows * self.response, self.hidden
        hidden = torch.randn(steps, width, generator=generator)
        weight = torch.randn(self.vocabulary, width, generator=generator) / width**0.5
        sizes = (1.4 + 1.8 * torch.randn(steps, generator=generator)).exp().long().clamp(max=256)
        offsets = offsets_of(sizes.clamp(max=self.vocabulary // 8))
        members = int(offsets[-1])
        ids = torch.randint(self.vocabulary, (members,), generator=generator)
        sets = TopPSets(ids, torch.full((members,), -3.0), offsets)
        inputs = (t.to(device, dtype).requires_grad_() for t in (hidden, weight))
        return *inputs, sets.to(device)  # pyright: ignore[reportReturnType]


def write_models(folder: Path, sizes: Sizes) -> None:
    """Teacher, student and rows of these sizes, unless they are there."""
    key = json.dumps(asdict(sizes))
    mark = folder / "sizes.json"
    if mark.exists() and mark.read_text(encoding="utf-8") == key:
        return
    folder.mkdir(parents=True, exist_ok=True)
    layers = {"teacher": sizes.teacher_layers, "student": sizes.student_layers}
    for name, count in layers.items():
        save(LanguageModel(_network(sizes, count), _tokenizer(sizes), name), folder / name)
    text = " ".join(f"w{i}" for i in range(2, 2 + sizes.prompt))
    ids = list(range(2, 2 + sizes.prompt + sizes.response))
    row = {
        "prompt": text,
        "prompt_ids": ids[: sizes.prompt],
        "response_ids": ids[sizes.prompt :],
    }
    (folder / "rows.json").write_text(json.dumps([row] * sizes.rows), encoding="utf-8")
    mark.write_text(key, encoding="utf-8")


def language_model(folder: Path, name: str, device: torch.device) -> LanguageModel:
    """One of the two."""
    return load(folder / name, device=device)


def _network(sizes: Sizes, layers: int) -> Any:
    """SmolLM2's shape: three query heads share a key head, heads of 64, a tied embedding."""
    heads = max(3, sizes.hidden // 64)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=sizes.hidden,
        intermediate_size=sizes.hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        head_dim=max(8, sizes.hidden // heads),
        vocab_size=sizes.vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _tokenizer(sizes: Sizes) -> PreTrainedTokenizerFast:
    words = {"<unk>": 0, "<end>": END} | {f"w{i}": i for i in range(2, sizes.vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )
