"""The splits of a run: what is taken from where, and what is refused before any sampling."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline import write_world
from tdistill.data import DataConfig, Example
from tdistill.errors import DataError
from tdistill.recipe import Recipe, StartConfig, StudentConfig, TeacherConfig, read_recipe
from tdistill.run.examples import load_splits, read_clock, references_field
from tdistill.run.groundwork import Groundwork
from tdistill.training.objectives import KD, SFT
from tiny import tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write(folder: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def rows(count: int = 20, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{LETTERS[i]} one", "completion": "yes", **more} for i in range(count)]


CLOCK = datetime(2030, 1, 2)


def load(config: DataConfig, **options: Any) -> tuple[dict[str, list[Example]], list[str], str]:
    lines: list[str] = []
    splits, report = load_splits(config, tokenizer(), lines.append, clock=CLOCK, **options)
    return splits, lines, report


def ground_of(data: DataConfig, folder: Path, words: Any) -> Groundwork:
    """The work of a run on some data, its tokenizer given."""
    recipe = Recipe(
        TeacherConfig("t"),
        StudentConfig(layers=1),
        data=data,
        start=None,
        distilled="a",
        objectives={"a": KD()},
    )
    ground = Groundwork(recipe, folder, str)
    vars(ground)["_load_tokenizer"] = words
    return ground


def test_validation_and_test_are_parts_of_what_the_user_gave(tmp_path: Path):
    source = write(tmp_path, rows())
    splits, lines, doctor = load(DataConfig(train=source))
    prompts = {name: {e.prompt for e in examples} for name, examples in splits.items()}
    assert {name: len(part) for name, part in prompts.items()} == {
        "train": 17,
        "valid": 1,
        "test": 2,
    }
    assert set.union(*prompts.values()) == {row["prompt"] for row in rows()}
    stated = (
        f"data.valid and data.test: auto, so the rows of {source} are divided by their prompts "
        "(data.split_seed 0): 17 to train, 1 to valid, 2 to test"
    )
    assert lines[0] == f"  {stated}"
    assert doctor.startswith(stated)
    assert f"data doctor: {source} (part: test)" in doctor


def test_named_sources_are_taken_whole_and_null_is_none(tmp_path: Path):
    source, test = write(tmp_path, rows()), write(tmp_path, [{"prompt": "two"}], "test.jsonl")
    splits, lines, _ = load(DataConfig(train=source, valid=None, test=test))
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 20,
        "valid": 0,
        "test": 1,
    }
    assert not any("auto" in line for line in lines)


def test_limits_hold_for_parts_too(tmp_path: Path):
    config = DataConfig(train=write(tmp_path, rows()), limit_train=3, test_share=0.5, limit_test=2)
    splits, _, _ = load(config)
    assert (len(splits["train"]), len(splits["test"])) == (3, 2)


def test_the_date_is_kept_in_the_folder_and_prompts_stay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = DataConfig(train=write(tmp_path, rows()))
    dated = _with_template(
        "{{ strftime_now('%d %b') }} {% for m in messages %}{{ m.content }} <end> {% endfor %}"
    )

    def prompts_on(day: datetime, folder: Path) -> list[str]:
        turn_to(monkeypatch, day)
        folder.mkdir(exist_ok=True)
        ground = ground_of(config, folder, dated)
        ground.keep_clock()
        return [e.prompt for e in ground.load_examples()["train"]]

    begun, later = datetime(2030, 5, 9, 23, 59, 59), datetime(2030, 5, 10)
    first = prompts_on(begun, tmp_path / "a")
    assert first[0].startswith("09 May ")
    assert prompts_on(later, tmp_path / "a") == first
    assert read_clock(tmp_path / "a") == begun
    assert prompts_on(later, tmp_path / "b")[0].startswith("10 May ")


def test_of_two_processes_the_first_ones_date_counts(tmp_path: Path):
    dated = _with_template(
        "{{ strftime_now('%H:%M:%S') }} {% for m in messages %}{{ m.content }} <end> {% endfor %}"
    )
    config = DataConfig(train=write(tmp_path, rows()))
    first, second = (ground_of(config, tmp_path / "run", dated) for _ in range(2))
    (tmp_path / "run").mkdir()
    vars(first)["_clock"], vars(second)["_clock"] = CLOCK, datetime(2031, 3, 4, 5, 6, 7)
    seen = [ground.load_examples()["train"][0].prompt for ground in (first, second)]
    assert [prompt[:8] for prompt in seen] == ["00:00:00", "05:06:07"]
    first.keep_clock()
    second.keep_clock()
    assert second.load_examples()["train"][0].prompt == seen[0]


def turn_to(monkeypatch: pytest.MonkeyPatch, day: datetime) -> None:
    class Today(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return day

    for place in ("tdistill.run.examples.datetime", "tdistill.data.chat.datetime"):
        monkeypatch.setattr(place, Today)


def test_rollouts_are_found_again_on_the_next_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_world(tmp_path / "world")
    (tmp_path / "world" / "teacher" / "chat_template.jinja").write_text(
        "{{ 'one' if strftime_now('%d') == '09' else 'two' }} {% for m in messages %}"
        "{{ m.content }} <end> {% endfor %}"
    )
    recipe = read_recipe(path, ["--data.template", "chat"])
    turn_to(monkeypatch, datetime(2030, 5, 9))
    first = Groundwork(recipe, tmp_path / "run", str).sample_rollouts()
    turn_to(monkeypatch, datetime(2030, 5, 10))
    lines: list[str] = []
    again = Groundwork(recipe, tmp_path / "run", lines.append).sample_rollouts()
    assert again == first
    assert "[rollouts] reused" in lines
    other = Groundwork(recipe, tmp_path / "other", str).sample_rollouts()
    assert {row.prompt_ids[0] for row in first}.isdisjoint({row.prompt_ids[0] for row in other})


def _with_template(template: str) -> Any:
    found = copy.deepcopy(tokenizer())
    found.chat_template = template
    return found


def _recipe() -> Recipe:
    student = StudentConfig(layers=1)
    return Recipe(TeacherConfig("t"), student, distilled="a", objectives={"a": KD()})


def test_a_damaged_date_is_refused(tmp_path: Path):
    (tmp_path / "rendering.json").write_text('{"clock": "yesterday"}')
    with pytest.raises(DataError, match=r"rendering\.json: expected"):
        read_clock(tmp_path)


def test_responses_that_are_trained_on_must_be_there(tmp_path: Path):
    prompts = [{"prompt": f"{letter} one", "reply": "yes"} for letter in LETTERS]
    config = DataConfig(train=write(tmp_path, prompts))
    assert load(config)[0]["train"]
    with pytest.raises(DataError) as caught:
        load(config, references_for="start.rows: references")
    text = str(caught.value)
    assert text.startswith("start.rows: references: expected responses in")
    assert "not used: the columns reply" in text
    mapped = replace(config, columns={"response": "reply"})
    assert load(mapped, references_for="start.rows: references")[0]["train"]


def test_rows_that_the_template_cannot_express_count_where_they_are_trained_on(tmp_path: Path):
    silent = _with_template(
        "{% for m in messages %}{{ m.content if m.role == 'user' or 'PROBE' in m.content }} <end> "
        "{% endfor %}"
    )
    config = DataConfig(train=write(tmp_path, rows()))
    splits, _ = load_splits(config, silent, str, clock=CLOCK)
    assert all(not e.reference_ids and e.references == ("yes",) for e in splits["train"])
    with pytest.raises(DataError, match=r"found 17 of 17 .* rewrites the response"):
        load_splits(config, silent, str, clock=CLOCK, references_for="start.rows: both")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, "start.rows: references"),
        ({"start": StartConfig(rows="both")}, "start.rows: both"),
        ({"start": None, "objectives": {"a": SFT()}}, "objectives.a"),
        (
            {"start": None, "objectives": {"a": KD(reference_share=0.5)}},
            "objectives.a.reference_share",
        ),
        ({"start": StartConfig(rows="teacher"), "objectives": {"a": KD()}}, None),
    ],
)
def test_the_field_that_needs_responses_is_named(changes: dict[str, Any], field: str | None):
    assert references_field(replace(_recipe(), **changes)) == field


def test_plain_text_that_is_not_there_is_refused_before_anything_is_sampled(tmp_path: Path):
    data = DataConfig(train=write(tmp_path, rows()), lm_text=str(tmp_path / "none.txt"))
    ground = ground_of(data, tmp_path / "run", tokenizer())
    with pytest.raises(DataError, match=r"data\.lm_text: .*found nothing at .*none\.txt"):
        ground.load_examples()
