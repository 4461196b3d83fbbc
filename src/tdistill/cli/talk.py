"""The commands that let people try the models of a run: a conversation, and a file of prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from tdistill.errors import InvalidValueError, TdistillError, printable
from tdistill.files import write_atomically
from tdistill.models.decoding import Decoding
from tdistill.progress import Progress, quiet_libraries, tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tdistill.run.talk import FinishedRun, Voice

_NARROWEST = 32  # characters of a column, below which answers stand under each other
_SHOWN = 3  # prompts on the terminal where the responses go to a file
_HELP = """\
  /temperature T   how tokens are chosen from now on; 0: the likeliest
  /system TEXT     what the models are told before the conversation; it begins anew
  /reset           forget what was said
  /help            this
  /quit            or Ctrl-D; Ctrl-C stops an answer"""


@dataclass(frozen=True)
class ChatCommand:
    """Talk to the teacher, the start and the distilled student of a run, side by side."""

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    model: tuple[str, ...] = ()
    """Which models: teacher, start, or names of objectives. Default: teacher, start, the result."""
    temperature: float = 0.0
    """Of sampling; 0 takes the likeliest token."""
    max_new_tokens: int = 256
    """Length limit of an answer."""
    seed: int = 0
    """Of sampling."""


@dataclass(frozen=True)
class TryCommand:
    """Let the models of a run respond to the prompts of a file."""

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    prompts: str
    """JSONL, Parquet or another source (see DataConfig), or a .txt file with a prompt a line."""
    out: Path | None = None
    """File to write, JSONL: a row for each prompt, with the response of every model."""
    model: tuple[str, ...] = ()
    """Which models: teacher, start, or names of objectives. Default: teacher, start, the result."""
    temperature: float = 0.0
    """Of sampling; 0 takes the likeliest token."""
    max_new_tokens: int = 256
    """Length limit of a response."""
    limit: int | None = None
    """Only the first N prompts."""


def chat(words: list[str]) -> int:
    """Talk until the user has enough."""
    command = tyro.cli(ChatCommand, args=words, prog="tdistill chat")
    decoding = _decoding(command.temperature)
    quiet_libraries()
    from rich.console import Console

    from tdistill.run.talk import FinishedRun

    run = FinishedRun.at(command.run)
    voices = list(_voices(run, command.model))
    talk = Conversation(voices, Console(), decoding, command.max_new_tokens, command.seed)
    talk.greet()
    with suppress(EOFError):
        while talk.say(_read_line()):
            pass
    return 0


def try_(words: list[str]) -> int:
    """Respond to a file of prompts."""
    command = tyro.cli(TryCommand, args=words, prog="tdistill try")
    decoding = _decoding(command.temperature)
    quiet_libraries()
    from rich.console import Console
    from rich.text import Text

    from tdistill.models.language_model import load_tokenizer
    from tdistill.run.folders import model_folder
    from tdistill.run.talk import FinishedRun, answer_all, read_prompts

    run = FinishedRun.at(command.run)
    labels = command.model or run.main_labels
    tokenizer = load_tokenizer(model_folder(run.recipe, run.folder, "start"))
    examples = read_prompts(run, command.prompts, tokenizer, command.limit)
    rows = [{"prompt": e.question or e.prompt, "responses": {}} for e in examples]
    bar = Progress("try", len(labels) * len(rows), "responses")
    for answers in answer_all(
        run,
        labels,
        examples,
        decoding,
        max_new_tokens=command.max_new_tokens,
        on_done=lambda label, done: bar.advance(done, label),
    ):
        for row, text in zip(rows, answers.responses, strict=True):
            row["responses"][answers.label] = text
        if command.out is not None:  # as far as it is: the next model may take long
            _write_rows(command.out, rows)
    bar.close()
    console = Console()
    for row in rows if command.out is None else rows[:_SHOWN]:
        console.print(Text.assemble("\n", ("> ", "bold"), printable(row["prompt"])))
        console.print(side_by_side(console, row["responses"]))
    if command.out is not None:
        tell(f"{command.out}: {len(rows)} prompts, responses of {', '.join(labels)}")
    return 0


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # ASCII: a response may hold half a surrogate pair, which UTF-8 cannot.
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def _decoding(temperature: float) -> Decoding:
    if temperature < 0.0:
        raise InvalidValueError(f"--temperature: expected at least 0, found {temperature}")
    return Decoding(greedy=True) if temperature == 0.0 else Decoding(temperature=temperature)


def _voices(run: FinishedRun, wanted: Sequence[str]) -> Iterator[Voice]:
    """The models that were asked for; of the usual three those that are there."""
    from tdistill.run.talk import Voice

    for label in wanted or run.main_labels:
        try:
            yield Voice(label, run.load(label), run)
        except TdistillError as error:
            if wanted or label == run.recipe.distilled:
                raise
            tell(f"without {label}: {error}")


def _read_line() -> str:
    with suppress(ImportError):
        import readline  # noqa: F401  # lines that can be edited, and a history

    return input("\n> ")


def side_by_side(
    console: Console, answers: Mapping[str, str], *, last_lines: int | None = None
) -> Table:
    """What models said, in columns; under each other where the terminal is narrow.

    Args:
        console: where it will be shown.
        answers: by the label of the model.
        last_lines: show only the end of each answer.
    """
    from rich.table import Table
    from rich.text import Text

    from tdistill.report.measures import model_name

    width = console.width // max(1, len(answers)) - 2
    columns = width >= _NARROWEST
    titles, texts = [], []
    for label, answer in answers.items():
        lines = Text(printable(answer)).wrap(console, width if columns else console.width)
        titles.append(Text(model_name(label), style="bold"))
        texts.append(Text("\n").join(lines if last_lines is None else lines[-last_lines:]))
    table = Table.grid(padding=(0, 1), expand=columns)
    for row in (titles, texts) if columns else ():
        table.add_row(*row)
    for row in () if columns else zip(titles, texts, strict=True):
        for part in row:
            table.add_row(part)
    for column in table.columns:
        column.ratio, column.overflow = 1, "fold"
    return table


@contextmanager
def drawn(console: Console, answers: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """A function that draws answers as they are by now; nothing where there is no terminal."""
    if not console.is_terminal:
        yield lambda: None
        return
    from rich.live import Live

    lines = max(1, (console.height - 4) // len(answers))
    with Live(console=console, transient=True, auto_refresh=False) as live:
        yield lambda: live.update(side_by_side(console, answers, last_lines=lines), refresh=True)


@dataclass
class Conversation:
    """What is said, to all models alike, and drawn as they answer.

    Attributes:
        voices: the models, each with what it said itself.
        console: where answers are drawn.
        decoding: how tokens are chosen.
        max_new_tokens: length limit of an answer.
        seed: of sampling.
    """

    voices: Sequence[Voice]
    console: Console
    decoding: Decoding
    max_new_tokens: int = 256
    seed: int = 0
    said: int = field(default=0, init=False)

    def greet(self) -> None:
        """Who is there, and what can be typed."""
        names = ", ".join(f"{v.label} ({v.lm.num_parameters:,} parameters)" for v in self.voices)
        tell(f"{names}\nAn empty line does nothing; /help names the commands.")
        if self.voices[0].template != "chat":
            tell("These models have no chat template: each line is a prompt of its own.")

    def say(self, line: str) -> bool:
        """A line of the user's; False where it ends the conversation."""
        line = line.strip()
        if line.startswith("/"):
            return self._obey(*line[1:].partition(" ")[::2])
        if line:
            self._answer(line)
        return True

    def _obey(self, command: str, rest: str) -> bool:
        actions: dict[str, Callable[[str], None]] = {
            "temperature": self._set_temperature,
            "system": self._set_system,
            "reset": lambda rest: self._reset(),
            "help": lambda rest: tell(_HELP),
        }
        if command in ("quit", "exit"):
            return False
        if command in actions:
            actions[command](rest.strip())
        else:
            tell(f"/{command}: expected one of\n{_HELP}")
        return True

    def _set_temperature(self, text: str) -> None:
        try:
            self.decoding = _decoding(float(text))
        except ValueError:  # ours is one
            tell(f"/temperature: expected a number of at least 0, found {text or 'nothing'}")

    def _set_system(self, text: str) -> None:
        for voice in self.voices:
            voice.system = text
        self._reset()

    def _reset(self) -> None:
        for voice in self.voices:
            voice.turns.clear()
        tell("what was said is forgotten")

    def _answer(self, line: str) -> None:
        answers = dict.fromkeys((voice.label for voice in self.voices), "")
        with drawn(self.console, answers) as draw:
            for voice in self.voices:
                try:
                    answers[voice.label] = self._of(voice, line, answers, draw)
                except TdistillError as error:
                    answers[voice.label] = f"({error})"
                except KeyboardInterrupt:
                    answers[voice.label] += " (stopped)"
        self.said += 1
        self.console.print(side_by_side(self.console, answers))

    def _of(
        self, voice: Voice, line: str, answers: dict[str, str], draw: Callable[[], None]
    ) -> str:
        def show(text: str) -> None:
            answers[voice.label] = text
            draw()

        show("...")  # a first answer takes seconds: how the model can be read is tried
        return voice.answer(
            line,
            self.decoding,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed + self.said,
            on_text=show,
        )
