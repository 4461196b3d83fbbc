"""What the worlds of these studies share: tokenizers, networks and teachers made from nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel, save
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import SFT
from tdistill.training.train import train_student


class Pair(NamedTuple):
    """A prompt with an answer to it."""

    prompt: str
    answer: str


def pieces(pattern: str, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are what a regular expression finds in texts, with two more.

    The texts must be made of such pieces without a gap, so that decoding gives them back.
    """
    found = sorted({piece for text in texts for piece in re.findall(pattern, text)})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *found])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<end>", pad_token="<pad>"
    )


def network(
    tokenizer: PreTrainedTokenizerFast, *, layers: int, width: int, seed: int, inner: int = 4
) -> LanguageModel:
    """A Llama of random weights; its feed-forward layers are ``inner`` times as wide."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner * width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 32),
        initializer_range=width**-0.5,  # the default is for widths of thousands
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LanguageModel(LlamaForCausalLM(config).eval(), tokenizer, f"{layers} x {width}")


@dataclass(frozen=True)
class Lessons:
    """How a teacher is made from nothing; the base of the worlds."""

    teacher_layers: int = 4
    teacher_width: int = 128
    teacher_steps: int = 1400
    teacher_batch: int = 64
    learning_rate: float = 3e-3
    seed: int = 0

    def beginner(self, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
        """A teacher that has learned nothing yet."""
        return network(
            tokenizer, layers=self.teacher_layers, width=self.teacher_width, seed=self.seed
        )

    def teach(
        self, beginner: LanguageModel, lessons: Callable[[int], Sequence[Pair]], folder: Path
    ) -> None:
        """Train a network on as many answers as it reads, and write it to ``folder/teacher``."""
        config = TrainConfig(
            steps=self.teacher_steps,
            batch_size=self.teacher_batch,
            learning_rate=self.learning_rate,
            warmup_steps=100,
            weight_decay=0.0,
            seed=self.seed,
            save_steps=200,
            logging_steps=100,
        )
        pairs = lessons(self.teacher_steps * self.teacher_batch)
        save(_trained(beginner, pairs, config, folder), folder / "teacher")


def _trained(
    lm: LanguageModel, pairs: Sequence[Pair], config: TrainConfig, folder: Path
) -> LanguageModel:
    """A network trained on answers; checkpoints are in the folder meanwhile."""
    end = lm.end_ids[0]
    rows = [
        Row(tuple(prompt), (*answer, end), ended=True, source="reference")
        for prompt, answer in zip(
            lm.tokenizer([pair.prompt for pair in pairs]).input_ids,
            lm.tokenizer([pair.answer for pair in pairs]).input_ids,
            strict=True,
        )
    ]
    trained, _ = train_student(
        lm,
        SFT(),
        rows,
        config,
        checkpoints=folder / "checkpoints",
        vocabulary_size=lm.vocabulary_size,
        label="teacher",
    )
    shutil.rmtree(folder / "checkpoints")
    return trained


def write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
