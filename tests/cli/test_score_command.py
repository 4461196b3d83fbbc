"""Responses that are scored beside a run are rendered as the run's own."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tdistill.cli.cache import read_responses, rendering_of
from tdistill.data import DataConfig
from tdistill.errors import DataError, InvalidValueError
from tdistill.recipe import Recipe, StudentConfig, TeacherConfig, recipe_dict
from tiny import tokenizer


def dated() -> Any:
    found = copy.deepcopy(tokenizer())
    found.chat_template = (
        "{{ 'one' if strftime_now('%d') == '09' else 'two' }} {{ mood }} "
        "{% for m in messages %}{{ m.content }} <end> {% endfor %}"
    )
    return found


def test_the_section_and_the_date_of_a_run_are_used(tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"query": "a", "answer": "b"}))
    config = DataConfig(template_kwargs={"mood": "yes"}, columns={"prompt": "query"})
    recipe = Recipe(TeacherConfig("t"), StudentConfig(layers=1), data=config)
    (tmp_path / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe_dict(recipe)))
    (tmp_path / "rendering.json").write_text('{"clock": "2030-05-09T00:00:00"}')
    config, clock = rendering_of(tmp_path)
    (row,) = read_responses(replace(config, train=str(data)), dated(), clock=clock)
    words = tokenizer().convert_ids_to_tokens(list(row.prompt_ids))
    assert words == ["one", "yes", "a", "<end>"]
    with pytest.raises(DataError, match="found the columns query, answer"):
        read_responses(DataConfig(train=str(data)), dated())


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(InvalidValueError, match=r"expected the folder of a run"):
        rendering_of(tmp_path)
