"""Talking to the models of a run: prompts are rendered as its data were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tdistill.checks import check
from tdistill.data import DataConfig, Example, load_examples
from tdistill.data.chat import chat_template_of
from tdistill.data.columns import detect_format, named_columns
from tdistill.data.config import Template
from tdistill.data.formats import Instruction, Prompt, PromptRecord
from tdistill.data.making import make_examples
from tdistill.data.messages import Message
from tdistill.data.readers import SourceRow, read_text
from tdistill.data.rendering import resolve_template
from tdistill.data.sources import column_names, existing_path, read_rows
from tdistill.data.thinking import without_reasoning
from tdistill.errors import DataError, ModelError
from tdistill.evaluation.responses import respond, text_of
from tdistill.models.decoding import Decoding
from tdistill.models.generation import decoding_sampler, generate
from tdistill.models.language_model import LanguageModel
from tdistill.recipe import Recipe, read_recipe
from tdistill.report.result import START, TEACHER
from tdistill.run.examples import read_clock
from tdistill.run.folders import STUDENT, model_folder, resolved_recipe
from tdistill.teacher.loading import load_stopping

OnText = Callable[[str], None]
"""Hears an answer as far as it is written."""


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run whose models are asked.

    Attributes:
        folder: of the run.
        recipe: of the run, every default spelled out.
    """

    folder: Path
    recipe: Recipe

    @classmethod
    def at(cls, folder: Path) -> FinishedRun:
        """The run in a folder.

        Raises:
            InvalidValueError: there is none.
        """
        return cls(folder, read_recipe(resolved_recipe(folder)))

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all its models."""
        return TEACHER, START, *self.recipe.objectives

    @property
    def main_labels(self) -> tuple[str, ...]:
        """Teacher, start and the distilled student."""
        return TEACHER, START, self.recipe.distilled

    def place(self, label: str) -> Path:
        """The folder of a model of the run.

        Raises:
            InvalidValueError: the run has none of that name.
            ModelError: its weights are not there.
        """
        known = f"a model of the run ({', '.join(self.labels)})"
        check("--model", label in self.labels, known, label)
        place = model_folder(self.recipe, self.folder, label)
        if not place.exists() and label == self.recipe.distilled:
            place = self.folder / STUDENT
        if label != TEACHER and not place.exists():
            raise ModelError(
                f"{label}: expected a model in {place}, found none; it is not trained yet, or its "
                "weights went once it was judged (keep_models: false)"
            )
        return place

    def load(self, label: str) -> LanguageModel:
        """A model of the run; raises what `place` does."""
        return load_stopping(self.place(label), self.recipe.data)

    @cached_property
    def clock(self) -> datetime | None:
        """What chat templates of the run are told that ask for the date."""
        return read_clock(self.folder)

    def template(self, tokenizer: Any) -> Template:
        """How its prompts are rendered, never ``auto``."""
        data = self.recipe.data
        return resolve_template(tokenizer, data.template, _format(data))


def _format(data: DataConfig) -> Any:
    """The format of the run's prompts; where they are gone, that of plain text."""
    try:
        rows = read_rows(data.train, limit=1)
        columns = named_columns(column_names(rows), data.columns, data.train)
        return detect_format(columns, data.format, data.train)
    except DataError:
        return "prompt-completion"


@dataclass
class Voice:
    """A model in a conversation of its own.

    Attributes:
        label: which model of the run.
        lm: the model.
        run: where it is from.
        turns: what was said; without a chat template every prompt stands alone.
        system: what it is told first; None: what the run's data say.
    """

    label: str
    lm: LanguageModel
    run: FinishedRun
    turns: list[Message] = field(default_factory=list)
    system: str | None = None

    @cached_property
    def template(self) -> Template:
        """How its prompts are rendered."""
        return self.run.template(self.lm.tokenizer)

    def answer(
        self,
        text: str,
        decoding: Decoding,
        *,
        max_new_tokens: int,
        seed: int = 0,
        on_text: OnText = lambda text: None,
    ) -> str:
        """What the model says to a text, after all that was said before.

        Args:
            text: of the user.
            decoding: how tokens are chosen.
            max_new_tokens: length limit.
            seed: of the sampler.
            on_text: hears the answer as it grows.

        Raises:
            DataError: the chat template cannot render the conversation.
            ModelError: it is longer than the model has positions for.
        """
        prompt_ids, ids = self._prompt_ids(text), list[int]()
        sample = decoding_sampler(decoding, 1, seed=seed, device=self.lm.device)

        def choose(logits: Any, active: Any) -> Any:
            chosen = sample(logits, active)
            ids.append(int(chosen[0]))
            on_text(self._text(ids))
            return chosen

        generate(self.lm, [prompt_ids], choose, max_new_tokens=max_new_tokens)
        answer = self._text(ids)
        # Templates leave out the reasoning of earlier turns, or were not written for it.
        kept = without_reasoning(answer)
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": kept}]
        return answer

    def _prompt_ids(self, text: str) -> tuple[int, ...]:
        data, prompt = self.run.recipe.data, cast(Prompt, text)
        if self.system is not None:
            data = replace(data, system=self.system)
        chat = None
        if self.template == "chat":
            chat = chat_template_of(self.lm.tokenizer, data, self.run.clock)
            prompt = (*self.turns, {"role": "user", "content": text})
        elif self.template == "alpaca":
            prompt = Instruction(text)
        record = PromptRecord("the conversation", prompt, (), False)
        (made,) = make_examples(self.lm.tokenizer, self.template, [record], data, chat)
        if made.example is None or not made.example.prompt_ids:
            raise DataError(
                f"the conversation: expected turns that the template can write, found others "
                f"({made.fault or 'no token'}); begin anew"
            )
        return made.example.prompt_ids

    def _text(self, ids: Sequence[int]) -> str:
        """Of tokens; half a character at the end is left out."""
        text = self.lm.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text.rstrip("\N{REPLACEMENT CHARACTER}").strip()


@dataclass(frozen=True)
class Answers:
    """The responses of one model to all prompts, in their order."""

    label: str
    responses: list[str]


def read_prompts(run: FinishedRun, source: str, tokenizer: Any, limit: int | None) -> list[Example]:
    """Prompts of a file, rendered as those of the run were.

    Args:
        run: whose section ``data`` is used.
        source: as in ``DataConfig``, or a ``.txt`` file with a prompt on each line.
        tokenizer: of its models.
        limit: only so many rows.

    Raises:
        DataError: there is no such file, or no prompt in it.
    """
    data, rows = replace(run.recipe.data, train=source), None
    if source.endswith(".txt"):
        lines = enumerate(read_text(existing_path(source)).splitlines(), 1)
        rows = [SourceRow(f"{source}:{i}", {"prompt": t}) for i, t in lines if t.strip()]
        data = replace(data, format="auto", columns={})
    examples, _ = load_examples(source, tokenizer, data, limit=limit, clock=run.clock, rows=rows)
    return examples


def answer_all(
    run: FinishedRun,
    labels: Sequence[str],
    examples: Sequence[Example],
    decoding: Decoding,
    *,
    max_new_tokens: int,
    on_done: Callable[[str, int], None] = lambda label, done: None,
) -> Iterator[Answers]:
    """The responses of one model after the other; only one is in memory.

    Args:
        run: of the models.
        labels: of the models.
        examples: prompts.
        decoding: how tokens are chosen.
        max_new_tokens: length limit.
        on_done: told the model and how many responses it has just finished.
    """
    for label in labels:
        lm = run.load(label)
        made = respond(
            lm,
            [example.prompt_ids for example in examples],
            decoding,
            seeds=1,
            max_new_tokens=max_new_tokens,
            batch_size=run.recipe.evaluation.batch_size,
            on_batch=lambda done, label=label: on_done(label, done),
        )
        yield Answers(label, [text_of(lm, response) for response in made.responses[0]])
