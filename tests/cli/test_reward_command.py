"""`tdistill reward` on the tiny world: its files, its ranks, its refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import Finished, read_json
from tdistill import cli
from tdistill.cli import reward as reward_command
from tdistill.cli.reward import RewardCommand, read_and_rank
from tdistill.data import DataConfig, load_examples
from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel, load, save
from tdistill.report.rewards import MOST_SHOWN, write_rewards_page
from tdistill.teacher.config import CaptureConfig
from tdistill.teacher.source import LiveTeacher
from tiny import tiny_model, tokenizer

CANDIDATES = {"a b c": ["d e", "k l m", "z"], "f": ["g h i j", "f"], "q r": ["s"]}
SYMMETRIC = ("mean", "total", "discounted")


def write_data(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Candidates of several prompts, a row each, prompts mixed; or the rows given."""
    mixed = [{"prompt": p, "completion": c[i]} for i in range(3) for p, c in CANDIDATES.items()
             if i < len(c)]  # fmt: skip
    path = folder / "candidates.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows or mixed))
    return path


def reward(out: Path, *words: str) -> list[dict[str, Any]]:
    """Run the command; returns the lines of rewards.jsonl."""
    assert cli.main(["reward", "--out", str(out), *words]) == 0
    return read_lines(out / "rewards.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def models_of(finished: Finished) -> tuple[str, str]:
    return str(finished.folder / "student"), str(finished.recipe.parent / "teacher")


@torch.no_grad()
def dense(model: LanguageModel, teacher: LanguageModel, row: Row, gamma: float) -> dict[str, Any]:
    """All numbers of one response from full float64 logits; raw Q, sets of mass 0.7."""
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]])
    logits = model.model(ids).logits[0, len(row.prompt_ids) - 1 :].double()
    live = LiveTeacher(teacher, CaptureConfig(0.7, None))
    sets = live.evidence([row]).sets
    members = [sorted({*sets.row(t)[0].tolist(), a}) for t, a in enumerate(row.response_ids)]
    off = [a not in sets.row(t)[0].tolist() for t, a in enumerate(row.response_ids)]
    value = [float(z[m].logsumexp(0)) for z, m in zip(logits, members, strict=True)]
    after = [gamma * v for v in value[1:]] + [0.0 if row.ended else None]
    chosen = [float(z[a]) for z, a in zip(logits, row.response_ids, strict=True)]
    rewards = [None if v is None else q - v for q, v in zip(chosen, after, strict=True)]
    log_prob = [q - float(z.logsumexp(0)) for q, z in zip(chosen, logits, strict=True)]
    return {"value": value, "implied_reward": rewards, "log_prob": log_prob, "off": sum(off)}


def test_every_number_equals_the_dense_formula(finished: Finished, tmp_path: Path):
    student, teacher = models_of(finished)
    data = write_data(tmp_path)
    words = ("--data", str(data), "--set-top-p", "0.7", "--discount", "0.9")
    limits = ("--template", "plain", "--max-response-tokens", "3")
    rows = reward(tmp_path / "out", "--model", student, "--teacher", teacher, *words, *limits)
    config = DataConfig(template="plain", max_response_tokens=3)
    examples, _ = load_examples(str(data), tokenizer(), config)
    own, theirs = load(student), load(teacher)
    assert {row["ended"] for row in rows} == {False, True}
    for found, e in zip(rows, examples, strict=True):
        row = Row(e.prompt_ids, e.reference_ids, e.reference_ended)
        wanted = dense(own, theirs, row, 0.9)
        last = len(row.response_ids) - (not row.ended)
        assert found["ended"] == row.ended
        assert found["value"] == pytest.approx(wanted["value"], abs=1e-4)
        assert found["log_prob"] == pytest.approx(wanted["log_prob"], abs=1e-4)
        assert found["implied_reward"][last:] == [None] * (not row.ended)
        known = wanted["implied_reward"][:last]
        assert found["implied_reward"][:last] == pytest.approx(known, abs=1e-4)
        assert found["off_set_tokens"] == wanted["off"]
        assert found["total_reward"] == pytest.approx(sum(known), abs=1e-3)
        assert found["mean_reward"] == pytest.approx(sum(known) / last, abs=1e-3)
        discounted = sum(0.9**t * r for t, r in enumerate(known))
        assert found["discounted_reward"] == pytest.approx(discounted, abs=1e-3)
        likelihood = sum(wanted["log_prob"]) / len(wanted["log_prob"])
        assert found["log_prob_per_token"] == pytest.approx(likelihood, abs=1e-4)
        teachers = dense(theirs, theirs, row, 0.9)["log_prob"]
        assert found["teacher_log_prob"] == pytest.approx(teachers, abs=0.01)
        assert found["prompt"] == e.question
        assert [found["response"]] == list(e.references)


def test_without_a_teacher_the_sets_are_the_models_own(finished: Finished, tmp_path: Path):
    _, teacher = models_of(finished)
    data = str(write_data(tmp_path))
    alone = reward(tmp_path / "alone", "--model", teacher, "--data", data)
    both = reward(tmp_path / "both", "--model", teacher, "--teacher", teacher, "--data", data)
    assert "teacher_log_prob" not in alone[0]
    for a, b in zip(alone, both, strict=True):
        assert a["implied_reward"] == pytest.approx(b["implied_reward"], abs=1e-5)
        assert b["teacher_log_prob"] == pytest.approx(b["log_prob"], abs=0.01)


@pytest.mark.parametrize("rank_by", SYMMETRIC)
def test_ranks_and_best_follow_the_chosen_reward(finished: Finished, tmp_path: Path, rank_by: str):
    _, teacher = models_of(finished)
    words = ("--model", teacher, "--data", str(write_data(tmp_path)), "--rank-by", rank_by)
    rows = reward(tmp_path / "out", *words, "--best", "2")
    assert [row["prompt"] for row in rows[:3]] == list(CANDIDATES)
    for prompt, candidates in CANDIDATES.items():
        own = [row for row in rows if row["prompt"] == prompt]
        order = sorted(own, key=lambda row: -row[f"{rank_by}_reward"])
        assert [row["rank"] for row in order] == list(range(1, len(candidates) + 1))
    best = read_lines(tmp_path / "out" / "best.jsonl")
    kept = [(row["prompt"], row["response"]) for row in rows if row["rank"] <= 2]
    assert len(kept) == 5
    assert [(row["prompt"], row["completion"]) for row in best] == kept


TURNS = [{"role": "system", "content": "b"}, {"role": "user", "content": "c d"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a b", "completion": "c"},
        {"prompt": TURNS, "completion": "c"},
        {"messages": [*TURNS, {"role": "assistant", "content": "e f"}]},
        {"instruction": "a b", "input": "c", "output": "d"},
        {"instruction": "a b", "output": "d"},
    ],
)
def test_the_best_can_be_trained_on(finished: Finished, tmp_path: Path, row: dict[str, Any]):
    _, teacher = models_of(finished)
    data = write_data(tmp_path, [row])
    reward(tmp_path / "out", "--model", teacher, "--data", str(data), "--best", "1")
    config = DataConfig()
    again, _ = load_examples(str(tmp_path / "out" / "best.jsonl"), tokenizer(), config)
    before, _ = load_examples(str(data), tokenizer(), config)
    assert again[0].prompt_ids == before[0].prompt_ids
    assert again[0].reference_ids == before[0].reference_ids != ()


def test_every_response_of_a_row_is_a_candidate(finished: Finished, tmp_path: Path):
    _, teacher = models_of(finished)
    data = write_data(tmp_path, [{"prompt": "a", "completion": ["b c", "d", "e"]}])
    rows = reward(tmp_path / "out", "--model", teacher, "--data", str(data))
    assert [row["response"] for row in rows] == ["b c", "d", "e"]
    assert sorted(row["rank"] for row in rows) == [1, 2, 3]


def test_a_run_gives_model_teacher_and_settings(finished: Finished, tmp_path: Path):
    student, teacher = models_of(finished)
    data = str(write_data(tmp_path))
    recipe = yaml.safe_load((finished.folder / "recipe.resolved.yaml").read_text())
    objective = recipe["objectives"]["bellman_distill"]
    before = (finished.folder / "recipe.resolved.yaml").stat().st_mtime_ns
    of_run = reward(tmp_path / "run", "--run", str(finished.folder), "--data", data)
    assert (finished.folder / "recipe.resolved.yaml").stat().st_mtime_ns == before
    settings = ("--shift", objective["shift"], "--discount", str(objective["discount"]))
    sets = ("--set-top-p", str(objective["set_top_p"]), "--template", "plain")
    words = ("--model", student, "--teacher", teacher, "--data", data)
    assert of_run == reward(tmp_path / "given", *words, *settings, *sets)
    changed = reward(
        tmp_path / "c", "--run", str(finished.folder), "--data", data, "--shift", "normalised"
    )
    assert changed != of_run
    kd = reward(tmp_path / "kd", "--run", str(finished.folder), "--label", "kd", "--data", data)
    models = str(finished.folder / "models" / "kd")
    words = ("--model", models, "--teacher", teacher, "--data", data, "--template", "plain")
    assert kd == reward(tmp_path / "kd2", *words, "--set-top-p", "0.9")
    own = reward(
        tmp_path / "t", "--run", str(finished.folder), "--label", "teacher", "--data", data
    )
    assert "teacher_log_prob" not in own[0]


def test_the_page_holds_every_response_and_no_script(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, teacher = models_of(finished)
    data = write_data(tmp_path, [{"prompt": "<script>x</script>", "completion": ["a", "b c"]}])
    reward(tmp_path / "out", "--model", teacher, "--data", str(data))
    page = (tmp_path / "out" / "rewards.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert page.index("rank 1;") < page.index("rank 2;")
    assert page.count('class="tokens"') == 2
    assert "more responses" not in page
    said = capsys.readouterr().out
    assert "2 responses to 1 prompts" in said
    assert "best" in said
    assert str(tmp_path / "out" / "rewards.html") in said


def record(number: int, rank: int) -> dict[str, Any]:
    sums = dict.fromkeys(("mean_reward", "total_reward", "discounted_reward"), -1.0)
    place = {"prompt_number": number, "rank": rank, "prompt": f"prompt {number}"}
    rest = {"log_prob_per_token": -1.0, "off_set_tokens": 0, "ended": True}
    return place | sums | rest | {"tokens": ["a"], "implied_reward": [-1.0], "value": [0.0]}


def test_a_long_page_says_what_it_leaves_out(tmp_path: Path):
    records = [record(i % 50, 5 - i // 50) for i in range(MOST_SHOWN + 50)]
    page = write_rewards_page(records, tmp_path / "r.html", title="t").read_text()
    assert page.count('class="tokens"') == MOST_SHOWN
    assert "50 more responses are not shown" in page
    assert page.index("prompt 0<") < page.index("prompt 1<")
    assert "prompt 39<" in page
    assert "prompt 40<" not in page


def test_a_response_cut_after_one_token_has_no_reward(finished: Finished, tmp_path: Path):
    _, teacher = models_of(finished)
    data = write_data(tmp_path, [{"prompt": "a", "completion": "b c d"}])
    words = ["--model", teacher, "--data", str(data), "--max-response-tokens", "1"]
    rows = reward(tmp_path / "out", *words)
    assert [rows[0][f"{name}_reward"] for name in SYMMETRIC] == [None] * 3
    assert read_json(tmp_path / "out" / "rewards.jsonl") == rows[0]
    assert "no reward is known" in (tmp_path / "out" / "rewards.html").read_text()


def test_what_cannot_be_read_is_one_error(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    student, teacher = models_of(finished)
    data = str(write_data(tmp_path))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a b"}\n')
    other = copy.deepcopy(tokenizer())
    words = other.backend_tokenizer.to_str().replace('"a":2,', '"a":3,').replace('"b":3,', '"b":2,')
    other = type(other)(
        tokenizer_object=type(other.backend_tokenizer).from_str(words), eos_token="<end>"
    )
    save(LanguageModel(tiny_model("llama"), other, "other"), tmp_path / "other")
    cases = [
        (["--model", str(tmp_path / "none"), "--data", data], "expected a folder with a model"),
        (["--model", teacher, "--data", str(prompts)], "prompts.jsonl:1: expected a response"),
        (["--model", teacher, "--data", "no.jsonl"], "found nothing at no.jsonl"),
        (
            ["--model", student, "--teacher", str(tmp_path / "other"), "--data", data],
            "tokenizers differ",
        ),
        (["--data", data], "model, run: expected exactly one"),
        (["--model", teacher, "--run", str(finished.folder), "--data", data], "exactly one"),
        (["--run", str(finished.folder), "--teacher", teacher, "--data", data], "beside run"),
        (["--run", str(tmp_path), "--data", data], "run: expected the folder of a run"),
        (["--run", str(finished.folder), "--label", "no", "--data", data], "label: expected"),
        (["--model", teacher, "--label", "kd", "--data", data], "label: expected none"),
        (["--model", teacher, "--data", data, "--best", "0"], "best: expected at least 1"),
        (["--model", teacher, "--data", data, "--discount", "2"], "discount: expected"),
        (["--model", teacher, "--data", data, "--set-top-p", "0"], "set_top_p: expected"),
    ]
    for words, text in cases:
        assert cli.main(["reward", "--out", str(tmp_path / "out"), *words]) == 2, words
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert text in said
    assert not (tmp_path / "out").exists()


def test_it_is_also_a_function(finished: Finished, tmp_path: Path):
    _, teacher = models_of(finished)
    data = str(write_data(tmp_path))
    lines = read_and_rank(RewardCommand(data, tmp_path / "out", model=teacher))
    assert "6 responses to 3 prompts" in lines
    assert any(line.startswith("rank correlation") for line in lines)


CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [TURNS[1], {"role": "assistant", "tool_calls": CALLS}], "tools": TOOLS},
        {"prompt": "a b", "response": "c", "system": "d"},
        {"question": "a b", "answer": "c", "system": "d"},
        {"messages": [TURNS[1], {"role": "assistant", "content": "e", "reasoning": "f"}]},
    ],
)
def test_rows_of_chats_are_written_as_they_can_be_read_again(tmp_path: Path, row: dict[str, Any]):
    words = copy.deepcopy(tokenizer())
    words.chat_template = (
        "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{% for m in messages %}"
        "{{ m.reasoning_content }} {{ m.content }} {% for call in m.tool_calls %}"
        "{{ call.function.name }} {{ call.function.arguments }} {% endfor %}<end> {% endfor %}"
    )
    (first,), _ = load_examples(str(write_data(tmp_path, [row])), words, DataConfig())
    again = write_data(tmp_path, [vars(reward_command)["_as_data"](first)])
    (second,), _ = load_examples(str(again), words, DataConfig())
    assert (second.prompt_ids, second.reference_ids) == (first.prompt_ids, first.reference_ids)
    assert first.reference_ended
