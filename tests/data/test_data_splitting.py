"""Validation and test prompts that are taken from the training source."""

from __future__ import annotations

import pytest

from tdistill.data import DataConfig
from tdistill.data.readers import SourceRow
from tdistill.data.splitting import split_rows
from tdistill.errors import DataError


def rows(prompts):
    return [SourceRow(f"f:{i}", {"prompt": p, "completion": str(i)}) for i, p in enumerate(prompts)]


def prompts_of(part):
    return {row.values["prompt"] for row in part}


def test_shares_are_of_the_prompts_and_every_row_goes_to_one_part():
    source = rows([f"p{i}" for i in range(200)])
    parts = split_rows(source, "f", DataConfig(train="f"))
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 170,
        "valid": 10,
        "test": 20,
    }
    assert sorted(row.where for part in parts.values() for row in part) == sorted(
        row.where for row in source
    )
    order = [source.index(row) for row in parts["train"]]
    assert order == sorted(order)


def test_rows_that_ask_the_same_stay_together():
    source = rows([f"p{i % 20}" for i in range(200)])
    parts = split_rows(source, "f", DataConfig(train="f"))
    sets = [prompts_of(part) for part in parts.values()]
    assert sum(map(len, sets)) == 20
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]


def test_the_seed_and_the_text_choose_not_the_order():
    source = rows([f"p{i}" for i in range(50)])
    config = DataConfig(train="f")
    parts, turned = (split_rows(s, "f", config) for s in (source, source[::-1]))
    assert prompts_of(parts["test"]) == prompts_of(turned["test"])
    other = split_rows(source, "f", DataConfig(train="f", split_seed=1))
    assert prompts_of(other["test"]) != prompts_of(parts["test"])


def test_conversations_go_by_their_first_question():
    def turns(*texts):
        roles = ("user", "assistant", "user", "assistant")
        return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]

    talks = [turns(f"q{i}", "a") for i in range(20)]
    longer = [turns(f"q{i}", "a", "more", "b") for i in range(20)]
    source = [SourceRow(f"f:{i}", {"messages": t}) for i, t in enumerate([*talks, *longer])]
    for part in split_rows(source, "f", DataConfig(train="f")).values():
        asked = [row.values["messages"][0]["content"] for row in part]
        assert sorted(asked) == sorted(2 * list(set(asked)))


def test_only_what_is_auto_is_taken():
    parts = split_rows(rows("abcdef"), "f", DataConfig(train="f", valid=None))
    assert {name: len(part) for name, part in parts.items()} == {"train": 5, "test": 1}
    none = split_rows(rows("abcdef"), "f", DataConfig(train="f", valid_share=0.0))
    assert none["valid"] == []


def test_too_few_prompts_are_refused():
    with pytest.raises(DataError, match=r"held out for valid and test; found 2 different ones"):
        split_rows(rows("abab"), "f", DataConfig(train="f"))
