"""`tdistill chat` and `tdistill try` on the tiny run: what is asked, kept, shown and written."""

from __future__ import annotations

import builtins
import copy
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import Finished, read_json
from tdistill import cli
from tdistill.cli.talk import Conversation, drawn, side_by_side
from tdistill.models.decoding import Decoding
from tdistill.models.language_model import LanguageModel
from tdistill.run.talk import FinishedRun, Voice
from tiny import tiny_model, tokenizer

GREEDY = Decoding(greedy=True)
# Words of the tiny vocabulary; reasoning is left out of what was said before.
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|> {{ m.content }} {% elif "
    "m.role == 'system' %}the {{ m.content }} {% else %}<|assistant|> "
    "{{ m.content.split('</think>')[-1] }} <end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """What the user types, and then Ctrl-D."""
    left = iter(lines)

    def read(prompt: str = "") -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", read)


def run_of(finished: Finished, **data: Any) -> FinishedRun:
    run = FinishedRun.at(finished.folder)
    recipe = replace(run.recipe, data=replace(run.recipe.data, **data))
    return FinishedRun(run.folder, recipe)


def chatting(finished: Finished, label: str = "start") -> Voice:
    """A model with a chat template."""
    words = copy.deepcopy(tokenizer())
    words.chat_template = TEMPLATE
    lm = LanguageModel(tiny_model("llama"), words, "tiny")
    return Voice(label, lm, run_of(finished, template="auto"))


def written(voice: Voice, text: str) -> str:
    """The prompt that a text becomes, with the words of the vocabulary."""
    tokens: list[str] = voice.lm.tokenizer.convert_ids_to_tokens(list(voice._prompt_ids(text)))
    return " ".join(tokens)


def test_a_prompt_is_answered_as_the_run_s_own_were(finished: Finished):
    run = FinishedRun.at(finished.folder)
    sample = read_json(finished.folder / "metrics.json")["samples"][0]
    for label in run.labels:
        voice, heard = Voice(label, run.load(label), run), list[str]()
        answer = voice.answer(sample["prompt"], GREEDY, max_new_tokens=8, on_text=heard.append)
        assert answer == sample["responses"][label]
        assert heard[-1] == answer
        assert [len(text) for text in heard] == sorted(len(text) for text in heard)


def test_a_conversation_holds_what_was_said(finished: Finished, monkeypatch: pytest.MonkeyPatch):
    voice = chatting(finished)
    monkeypatch.setattr(voice, "_text", lambda ids: "k </think> m")
    assert voice.answer("a b", GREEDY, max_new_tokens=3) == "k </think> m"
    assert written(voice, "c") == "<|user|> a b <|assistant|> m <end> <|user|> c <|assistant|>"
    voice.system = "yes"
    told = written(voice, "c")
    assert told.startswith("the yes <|user|> a b <|assistant|> m <end>")


def test_without_a_chat_template_each_line_stands_alone(finished: Finished):
    run = FinishedRun.at(finished.folder)
    voice = Voice("start", run.load("start"), run)
    before = voice._prompt_ids("a b")
    voice.answer("c d", GREEDY, max_new_tokens=4)
    assert voice._prompt_ids("a b") == before


def test_samples_depend_on_the_seed_alone(finished: Finished):
    run = FinishedRun.at(finished.folder)
    said = []
    for seed in (0, 0, 1):
        voice = Voice("teacher", run.load("teacher"), run)
        said.append(voice.answer("a b", Decoding(), max_new_tokens=8, seed=seed))
    assert said[0] == said[1] != said[2]


def test_chat_talks_to_three_models_and_obeys(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "120")
    type_in(monkeypatch, "", "a b c", "/temperature -1", "/temperature x", "/temperature 0.7",
            "/nonsense", "/reset", "/help", "d", "/quit", "never asked")  # fmt: skip
    assert cli.main(["chat", str(finished.folder), "--max-new-tokens", "4"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("teacher (")
    assert "no chat template: each line is a prompt of its own" in said
    assert said.count("Teacher ") == 2  # answers
    row = next(line for line in said.splitlines() if line.startswith("Teacher "))
    assert row.split() == ["Teacher", "Start", "Bellman", "Distill"]
    assert "/temperature: expected a number of at least 0, found x" in said
    assert said.count("expected a number of at least 0") == 2
    assert "/nonsense: expected one of" in said
    assert "what was said is forgotten" in said


def test_chat_ends_with_the_input(finished: Finished, monkeypatch: pytest.MonkeyPatch):
    type_in(monkeypatch)
    assert cli.main(["chat", str(finished.folder), "--model", "kd", "sft"]) == 0


def test_an_answer_can_be_stopped_and_a_failure_ends_nothing(finished: Finished):
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    voices = [chatting(finished), chatting(finished, label="kd"), chatting(finished, label="sft")]

    def interrupt(*arguments: Any, **options: Any) -> str:
        options["on_text"]("so far")
        raise KeyboardInterrupt

    voices[1].answer = interrupt  # type: ignore[method-assign]
    voices[2].lm.model.config.max_position_embeddings = 2
    voices[2].lm.model.get_submodule("model").rotary_emb = None
    voices[2]._prompt_ids = lambda text: ()  # type: ignore[method-assign]
    talk = Conversation(voices, console, GREEDY, max_new_tokens=4)
    assert talk.say("Who?")
    assert len(voices[0].turns) == 2
    assert voices[1].turns == voices[2].turns == []
    shown = stream.getvalue()
    assert "so far (stopped)" in shown
    assert "..." not in shown
    assert "(prompts: expected at least one token in each" in shown


def test_answers_are_drawn_while_they_grow():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream, answers = Terminal(), {"teacher": "", "start": ""}
    console = Console(file=stream, width=90, height=12, force_terminal=True)
    with drawn(console, answers) as draw:
        answers["teacher"] = "one"
        draw()
        answers["start"] = "\n".join(f"line {i}" for i in range(20))
        draw()
    shown = stream.getvalue()
    assert "one" in shown
    assert "line 19" in shown
    assert "line 2\n" not in shown  # only the end of a long answer


@pytest.mark.parametrize("width", [30, 120])
def test_texts_of_models_cannot_act(width: int):
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    console.print(side_by_side(console, {"teacher": "\x1b[2J[red]x[/red]", "start": "y"}))
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert r"\x1b[2J[red]x[/red]" in shown
    together = any("Teacher" in line and "Start" in line for line in shown.splitlines())
    assert together == (width == 120)


@pytest.fixture
def prompts(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "prompts.txt"
    path.write_text("a b c\n\n d e\n")
    yield path


def test_try_writes_the_responses_of_every_model(
    finished: Finished, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "new" / "out.jsonl"
    words = ["--prompts", str(prompts), "--out", str(out), "--max-new-tokens", "8"]
    assert cli.main(["try", str(finished.folder), *words]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["a b c", " d e"]
    run = FinishedRun.at(finished.folder)
    for row in rows:
        assert list(row["responses"]) == ["teacher", "start", "bellman_distill"]
        for label, text in row["responses"].items():
            voice = Voice(label, run.load(label), run)
            assert text == voice.answer(row["prompt"], GREEDY, max_new_tokens=8)
    assert "> a b c" in capsys.readouterr().out


def test_try_reads_data_of_any_form(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = finished.recipe.parent / "test.jsonl"
    words = ["--prompts", str(data), "--limit", "2", "--model", "kd", "--max-new-tokens", "4"]
    assert cli.main(["try", str(finished.folder), *words]) == 0
    said = capsys.readouterr().out
    assert said.count("> ") == 2
    assert "Start" not in said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["chat", "{none}"], "expected the folder of a run, with recipe.resolved.yaml"),
        (["chat", "{run}", "--model", "nobody"], "--model: expected a model of the run (teacher, "),
        (["chat", "{run}", "--temperature", "-1"], "--temperature: expected at least 0, found -1"),
        (["try", "{run}", "--prompts", "{none}.txt"], "found nothing at"),
        (["try", "{run}", "--prompts", "{none}.jsonl"], "found nothing at"),
    ],
)
def test_what_cannot_be_talked_to_is_one_error(
    finished: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    text: str,
):
    places = {"run": finished.folder, "none": tmp_path / "none"}
    assert cli.main([word.format(**places) for word in words]) == 2
    assert text in capsys.readouterr().err


def test_a_model_whose_weights_are_gone_is_named(finished: Finished, tmp_path: Path):
    (tmp_path / "recipe.resolved.yaml").write_text(
        (finished.folder / "recipe.resolved.yaml").read_text()
    )
    with pytest.raises(Exception, match=r"kd: expected a model in .*keep_models: false"):
        FinishedRun.at(tmp_path).place("kd")
